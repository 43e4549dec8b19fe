"""Texts that the model reads as structure, and that no message may therefore contain."""

from __future__ import annotations

import re
from collections.abc import Iterable
from os.path import commonprefix

from edgetune.data.content import Chat
from edgetune.data.problems import RowError


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the texts, the longest first; nothing if there are none.

    What texts have in common is tried once: vocabularies with a thousand ``<SPECIAL_…>`` tokens
    would otherwise make a search of HTML a hundred times slower.
    """
    found = set(texts) - {""}
    return re.compile(_tree(found) if found else "(?!)")


def refuse_control_tokens(chat: Chat, controls: re.Pattern[str]) -> None:
    """Refuse a chat that has control texts in a message, in any of its fields, or in the tools.

    Raises:
        RowError: naming the message and the text.
    """
    for place, text in chat.texts():
        found = controls.search(text)
        if found:
            raise RowError(
                f"{place} contains {found.group()!r}, which the model reads as structure and"
                " not as text. Write it differently or remove the row."
            )


def _tree(texts: set[str]) -> str:
    groups: dict[str, set[str]] = {}
    for text in sorted(texts - {""}):
        groups.setdefault(text[0], set()).add(text)
    branches = "|".join(map(_branch, groups.values()))
    return f"(?:{branches})" + ("?" if "" in texts else "")


def _branch(texts: set[str]) -> str:
    shared = commonprefix(sorted(texts))  # noqa: RUF071 (no paths)
    rest = {text[len(shared) :] for text in texts}
    return re.escape(shared) + ("" if rest == {""} else _tree(rest))
