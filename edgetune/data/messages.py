"""Conversations as they come in rows, checked and brought into one shape."""

from __future__ import annotations

from typing import Any

from edgetune.data.problems import RowError
from edgetune.data.template import Message

_ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool",
}  # fmt: skip
_READ = {"role", "from", "content", "value"}


def read_messages(value: Any) -> list[Message]:
    """Return a list of messages with ``role`` and ``content``, other fields as they were.

    Raises:
        RowError: naming the message that cannot be used.
    """
    if not isinstance(value, list) or not value:
        raise RowError("The messages must be a list with at least one message in it.")
    return [_message(message, number) for number, message in enumerate(value, 1)]


def read_tools(value: Any) -> list[Any] | None:
    """Return the tools of a row, None if it has none.

    Raises:
        RowError: if they are not a list of objects.
    """
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError("The tools must be a list of objects.")
    return value


def _message(value: Any, number: int) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"Message {number} is not an object with role and content.")
    role = _role(value.get("role", value.get("from")), number)
    content = _content(value.get("content", value.get("value")), number)
    if not content.strip() and role in ("user", "assistant") and not value.get("tool_calls"):
        raise RowError(f"Message {number} ({role}) is empty. Fill it in or remove the row.")
    if value.get("weight") not in (None, 0, 1):
        raise RowError(f"Message {number} has a weight that is neither 0 nor 1.")
    message = {"role": role, "content": content}
    if value.keys() - _READ:
        message |= {k: item for k, item in value.items() if item is not None and k not in _READ}
    return message


def _role(role: Any, number: int) -> str:
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise RowError(f"Message {number} has the role {role!r:.40}. Known roles: {known}.")
    return _ROLES[role]


def _content(content: Any, number: int) -> str:
    """Return the text of a message; a list of text parts is joined."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [{"text": "" if content is None else content}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise RowError(f"Message {number} has content that is not text. Only text can be trained.")
    return "".join(str(text) for text in texts)
