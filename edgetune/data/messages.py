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
_ROLE, _CONTENT = ("role", "from"), ("content", "value")  # each has two names
_READ = {*_ROLE, *_CONTENT}


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
    role = _role(_either(value, _ROLE, number), _is_null(value, _ROLE), number)
    content = _content(_either(value, _CONTENT, number), number)
    calls = _calls(value.get("tool_calls"), number)
    if not content.strip() and role in ("user", "assistant") and not calls:
        found = "null" if _is_null(value, _CONTENT) else "empty"
        raise RowError(f"Message {number} ({role}) is {found}. Fill it in or remove the row.")
    if value.get("weight") not in (None, 0, 1):
        raise RowError(f"Message {number} has a weight that is neither 0 nor 1.")
    message = {"role": role, "content": content}
    if value.keys() - _READ:
        message |= {k: item for k, item in value.items() if item is not None and k not in _READ}
    return message


def _either(value: Message, names: tuple[str, str], number: int) -> Any:
    """Return what a message has under one of two names."""
    found = [value[name] for name in names if value.get(name) is not None]
    meant = [_ROLES.get(str(item), item) for item in found]
    if meant[1:] and meant[0] != meant[1]:
        raise RowError(f"Message {number} has both {' and '.join(names)}. Keep one of them.")
    return found[0] if found else None


def _is_null(value: Message, names: tuple[str, str]) -> bool:
    found = [value[name] for name in names if name in value]
    return bool(found) and all(item is None for item in found)


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


def _role(role: Any, is_null: bool, number: int) -> str:
    if isinstance(role, str) and role in _ROLES:
        return _ROLES[role]
    found = "null as its role" if is_null else "no role"
    if role is not None:
        found = f"the role {role!r:.40}"
    raise RowError(f"Message {number} has {found}. Known roles: {', '.join(_ROLES)}.")


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
