"""How much of the generation prompt stands before a turn in a text that goes on otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os.path import commonprefix
from typing import Protocol

from edgetune.data.template import Message

_STAND_IN = "edgetuneXquestion"


class Write(Protocol):
    """Renders messages of one chat, with its tools and arguments."""

    def __call__(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Return the messages as text, with the generation prompt if asked."""


def history_end(write: Write, messages: Sequence[Message], prompt: str) -> int | None:
    """Return where in a prompt the messages end and only the generation prompt follows.

    A template may write the generation prompt always: then no more is known than where the last
    message's content ends. None if that cannot be told either.
    """
    before = write(messages)
    if prompt.startswith(before) and before != prompt:
        return len(before)
    if not messages:
        return 0
    other = write([*messages[:-1], {**messages[-1], "content": _STAND_IN}], True)
    _, found, rest = other.rpartition(_STAND_IN)
    return len(prompt) - len(rest) if found and prompt.endswith(rest) else None


def opening(text: str, prompt: str, end: int, controls: re.Pattern[str]) -> int | None:
    """Return where a turn begins in a text that shares a part of its prompt, None if it shares none.

    ``end`` is where in the prompt the messages end. What both share is cut back to the end of a line
    or of a control text, but not into what names the role.
    """
    shared = len(commonprefix([text, prompt]))  # noqa: RUF071 (no paths)
    places = [found.end() for found in controls.finditer(prompt, end, shared)]
    places.append(prompt.rfind("\n", end, shared) + 1)
    at = max(places)
    names_role = prompt[at - 1 : at] != "\n" and prompt[at : at + 1].isalpha()
    return at if at > end and not names_role else None
