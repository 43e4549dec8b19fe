"""What a message says: a text, or a list of parts, each of which must be text.

Several parts stay a list until the model's template is known: it decides what stands between.
"""

from __future__ import annotations

from typing import Any

from edgetune.data.problems import RowError

TextContent = str | list[str]
_TYPES = ("text", "input_text", "output_text")
_TEXT = ("text", "value", "content")


def read_content(content: Any, number: int) -> TextContent:
    """Return the text of a message, or its texts if it has several parts.

    Raises:
        RowError: if a part is no text.
    """
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise _not_text(number, type(content).__name__)
    parts = [_part(part, number) for part in content]
    return parts if len(parts) > 1 else "".join(parts)


def _part(part: Any, number: int) -> str:
    if not isinstance(part, dict):
        raise _not_text(number, type(part).__name__)
    fields = {name for name, value in part.items() if value is not None}
    found = [name for name in _TEXT if name in fields]
    kind = part["type"] if "type" in fields else ", ".join(sorted(fields - {"text"})) or "text"
    text = part[found[0]] if len(found) == 1 else None
    if kind not in (*_TYPES, *found[:1]) or not isinstance(text, str):
        raise _not_text(number, kind)
    return text


def _not_text(number: int, kind: object) -> RowError:
    return RowError(
        f"Message {number} has content that is not text ({kind!s:.40}). Only text can be trained."
    )
