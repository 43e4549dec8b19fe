"""Conversations as they come in rows, checked and brought into one shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgetune.data import turn_weights
from edgetune.data.json_text import JsonReader
from edgetune.data.listed_text import refuse_printed
from edgetune.data.problems import RowError
from edgetune.data.template import Message
from edgetune.data.text_parts import read_content
from edgetune.data.tool_calls import as_calls, read_calls

_ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatbot": "assistant", "chatgpt": "assistant", "ai": "assistant", "bing": "assistant",
    "bard": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool",
    "tool_response": "tool", "function_response": "tool",
    "function_call": "call", "tool_call": "call",
}  # fmt: skip
_MOST = 1_000  # finding what is learned takes time by the square of the messages: then seconds
_ROLE, _CONTENT = ("role", "from"), ("content", "value")  # each has two names
_SAID = {*_ROLE, *_CONTENT}
_READ = {*_SAID, "tool_calls", "function_call", *turn_weights.FIELDS}
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def read_messages(value: Any) -> list[Message]:
    """Return a list of messages with ``role`` and ``content``, other fields as they were.

    ``tool_calls`` have objects as arguments, ``weight`` is 0 where a message is only read. The
    content is a text, or a list of several.

    Raises:
        RowError: naming the message that cannot be used.
    """
    value = _listed(value) if isinstance(value, str) else value
    if isinstance(value, str):
        refuse_printed("messages", [value])
    if not isinstance(value, list) or not value:
        raise RowError("The messages must be a list with at least one message in it.")
    if len(value) > _MOST:
        raise RowError(
            f"A chat may have {_MOST:,} messages; found {len(value):,}. Cut it into several rows."
        )
    messages = [_message(message, number) for number, message in enumerate(value, 1)]
    called = [_is_call(message) for message in value]
    return _joined(messages, called) if True in called else messages


def refuse_media(row: Mapping[str, Any], place: str = "The row") -> None:
    """Refuse what comes with images, sound or video: only its text would be trained.

    Raises:
        RowError: naming the field.
    """
    if row.keys().isdisjoint(_MEDIA):
        return
    for name in _MEDIA:
        if row.get(name):
            raise RowError(
                f"{place} has {name}, and only text can be trained: what is said of them would be"
                f" learned without them. Remove the row, or {name} if the text does not need them."
            )


def _listed(text: str) -> Any:
    """Return a list of messages from its JSON, as tables hold it."""
    reader = JsonReader()
    try:
        value = reader.value(text)
    except ValueError:
        return text
    if problem := reader.problem():
        raise RowError(problem)
    return value


def _message(value: Any, number: int) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"Message {number} is not an object with role and content.")
    if (plain := _plain(value)) is not None:
        return plain
    refuse_media(value, f"Message {number}")
    role = _role(_either(value, _ROLE, number), _is_null(value, _ROLE), number)
    found = _either(value, _CONTENT, number)
    if role == "call":
        calls = as_calls(found, number, "a function_call")
        message: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    else:
        content = read_content(_as_json(found) if role == "tool" else found, number)
        calls = read_calls(value, number)
        if not "".join(content).strip() and role in ("user", "assistant") and not calls:
            is_null = "null" if _is_null(value, _CONTENT) else "empty"
            raise RowError(f"Message {number} ({role}) is {is_null}. Fill it in or remove the row.")
        message = {"role": role, "content": content}
        if calls:
            message["tool_calls"] = calls
    if value.keys() - _SAID:
        message |= {k: item for k, item in value.items() if item is not None and k not in _READ}
        if turn_weights.read_weight(value, message["role"], number) == 0:
            message["weight"] = 0
    return message


def _plain(value: Message) -> Message | None:
    """Return a message of a known role and a text, None if it is any other: most are such."""
    if len(value) != 2:
        return None
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not (
        isinstance(role, str) and isinstance(content, str) and content and not content.isspace()
    ):
        return None
    meant = _ROLES.get(role)
    return None if meant in (None, "call") else {"role": meant, "content": content}


def _joined(messages: list[Message], called: list[bool]) -> list[Message]:
    """Return the messages with calls that have a turn of their own put into the turn before.

    So ``function_call`` after ``assistant``, or several in a row, are one turn of the assistant.
    """
    joined: list[Message] = []
    for message, is_call in zip(messages, called, strict=True):
        before = joined[-1] if joined else {}
        same = before.get("weight") == message.get("weight")
        if is_call and before.get("role") == "assistant" and same:
            calls = [*before.get("tool_calls", []), *message["tool_calls"]]
            joined[-1] = {**before, "tool_calls": calls}
        else:
            joined.append(message)
    return joined


def _is_call(value: Message) -> bool:
    role = value.get("role", value.get("from"))
    return role in ("function_call", "tool_call")


def _as_json(content: Any) -> Any:
    """Return what a tool answered as text: an object, or a list that is none of parts, as JSON."""
    is_list = isinstance(content, list) and content
    is_parts = is_list and all(isinstance(part, dict) and "type" in part for part in content)
    if isinstance(content, dict) or (is_list and not is_parts):
        return json.dumps(content, ensure_ascii=False)
    if isinstance(content, (bool, int, float)):
        return json.dumps(content)
    return content


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


def _role(role: Any, is_null: bool, number: int) -> str:
    known = (isinstance(role, str) and _ROLES.get(role)) or _ROLES.get(str(role).strip().lower())
    if isinstance(role, str) and known:
        return known
    found = "null as its role" if is_null else "no role"
    if role is not None:
        found = f"the role {role!r:.40}"
    raise RowError(
        f"Message {number} has {found}. Known roles: system, user, assistant, tool "
        "and other tools' names for them (docs/data.md)."
    )
