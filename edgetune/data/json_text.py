"""JSON texts to values, noting an object that has a key twice.

Python keeps the last of two values without a word. The hook that notices costs one or two
microseconds a row.
"""

from __future__ import annotations

import json
from collections import Counter


class JsonReader:
    """Parses texts one after another; ``repeated`` is the key that the last one had twice."""

    def __init__(self) -> None:
        """Start with no text."""
        self.repeated: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def value(self, text: str) -> object:
        """Return the value of a text.

        Raises:
            ValueError: if it is not JSON.
            RecursionError: if it is nested too deeply.
        """
        self.repeated = None
        value: object = self._decoder.decode(text)
        return value

    def value_at(self, text: str, start: int) -> tuple[object, int]:
        """Return the value that begins at a place of a text, and where it ends.

        Raises:
            ValueError: if there is none.
            RecursionError: if it is nested too deeply.
        """
        self.repeated = None
        return self._decoder.raw_decode(text, start)

    def problem(self) -> str | None:
        """Return what is wrong with the last value, None if nothing is."""
        if self.repeated is None:
            return None
        return f"The key {self.repeated!r:.100} appears twice in one object. Remove one of them."

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self.repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        return found


def reason_of(error: ValueError) -> str:
    """Return what is wrong with a JSON text, to be followed by where."""
    return error.msg.removesuffix(" at") if isinstance(error, json.JSONDecodeError) else str(error)
