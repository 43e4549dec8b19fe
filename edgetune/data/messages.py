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
_MOST = 1_000  # finding what is learned takes time by the square of the messages: then seconds
_READ = {"role", "from", "content", "value"}
_SAME = (("role", "from"), ("content", "value"))


def read_messages(value: Any) -> list[Message]:
    """Return a list of messages with ``role`` and ``content``, other fields as they were.

    Raises:
        RowError: naming the message that cannot be used.
    """
    if not isinstance(value, list) or not value:
        raise RowError("The messages must be a list with at least one message in it.")
    if len(value) > _MOST:
        raise RowError(
            f"A chat may have {_MOST:,} messages; found {len(value):,}. Cut it into several rows."
        )
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
    role, content = (_either(value, *names, number) for names in _SAME)
    role, content = _role(role, number), _content(content, number)
    calls = _calls(value.get("tool_calls"), number)
    if not content.strip() and role in ("user", "assistant") and not calls:
        raise RowError(f"Message {number} ({role}) is empty. Fill it in or remove the row.")
    if value.get("weight") not in (None, 0, 1):
        raise RowError(f"Message {number} has a weight that is neither 0 nor 1.")
    message = {"role": role, "content": content}
    if value.keys() - _READ:
        message |= {k: item for k, item in value.items() if item is not None and k not in _READ}
    return message


def _either(value: Message, name: str, other: str, number: int) -> Any:
    """Return a field that has two names."""
    found = [value[key] for key in (name, other) if value.get(key) is not None]
    if len(found) == 2 and _ROLES.get(str(found[0]), found[0]) != _ROLES.get(
        str(found[1]), found[1]
    ):
        raise RowError(f"Message {number} has both {name} and {other}. Keep one of them.")
    return found[0] if found else None


def _calls(calls: Any, number: int) -> list[Any]:
    """Return the tool calls of a message, each with a name."""
    if calls is None:
        return []
    if not isinstance(calls, list) or not all(map(_has_name, calls)):
        raise RowError(
            f"Message {number} has tool_calls that are no list of objects with the name of a"
            " function."
        )
    return calls


def _has_name(call: Any) -> bool:
    function = call.get("function") or call if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return isinstance(name, str) and bool(name.strip())


def _role(role: Any, number: int) -> str:
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise RowError(f"Message {number} has the role {role!r:.40}. Known roles: {known}.")
    return _ROLES[role]


def _content(content: Any, number: int) -> str:
    """Return the text of a message; a list of text parts is joined."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise _not_text(number, type(content).__name__)
    return "".join(_part(part, number) for part in content)


def _part(part: Any, number: int) -> str:
    if not isinstance(part, dict):
        raise _not_text(number, type(part).__name__)
    fields = {name for name, value in part.items() if value is not None} - {"text"}
    kind = part["type"] if "type" in fields else ", ".join(sorted(fields)) or "text"
    text = part.get("text")
    if kind != "text" or not isinstance(text, str):
        raise _not_text(number, kind)
    return text


def _not_text(number: int, kind: object) -> RowError:
    return RowError(
        f"Message {number} has content that is not text ({kind!s:.40}). Only text can be trained."
    )
