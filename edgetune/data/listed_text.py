"""Messages that a table has as text: their JSON is read, what Python prints of them refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgetune.data.json_text import JsonReader
from edgetune.data.problems import RowError

_AS_JSON = re.compile(r'\s*(\[\s*)?\{\s*"(role|content|from|value)"\s*:')
_AS_PYTHON = re.compile(r"\s*(\[\s*)?\{\s*'(role|content|from|value)'\s*:")


def as_listed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields as messages if every one is the text of some, else as they are.

    A single one may well be meant as text: an answer in JSON, a question about it.

    Raises:
        RowError: if every one is what Python prints of messages, or such JSON names a key twice.
    """
    found = dict(fields)
    texts = [value for value in fields.values() if isinstance(value, str)]
    if len(texts) < len(fields):
        return found
    refuse_printed(" and ".join(fields), texts)
    if all(map(_AS_JSON.match, texts)):
        parsed = {name: _messages(text) for name, text in fields.items()}
        if all(value is not None for value in parsed.values()):
            return parsed
    return found


def refuse_printed(name: str, texts: Sequence[str]) -> None:
    """Refuse texts of which every one is what Python prints of messages.

    Raises:
        RowError: naming them.
    """
    if texts and all(map(_AS_PYTHON.match, texts)):
        raise RowError(
            f"These are messages as Python prints them, with single quotes ({name}). Write them as"
            " JSON, or the file as JSONL or Parquet.",
            is_alike=True,
        )


def _messages(text: str) -> list[Any] | None:
    """Return the messages of a JSON text, None if it has others than those."""
    reader = JsonReader()
    try:
        value = reader.value(text)
    except (ValueError, RecursionError):
        return None
    if problem := reader.problem():
        raise RowError(problem)
    listed = value if isinstance(value, list) else [value]
    said = all(isinstance(each, dict) and {"role", "from"} & each.keys() for each in listed)
    return listed if said else None
