"""What a template leaves out of a chat that the model must be trained with."""

from __future__ import annotations

from typing import Any

from edgetune.data.content import Chat
from edgetune.data.problems import RowError
from edgetune.data.template import Message, Renders
from edgetune.data.thoughts import closing, split_thought

_STAND_IN = "edgetuneXsystem"


def lost_parts(template: Renders, chat: Chat, text: str) -> str | None:
    """Return what is missing in a text: a system prompt, or the last answer's thought.

    A thought in a field of its own is not missed where the template knows no thoughts.
    """
    for number, message in enumerate(chat.messages, 1):
        is_system = message["role"] in ("system", "developer")
        is_there = not is_system or message["content"].strip() in text
        if not is_there and not _is_written(template, chat, number - 1, text):
            return f"the system prompt (message {number})"
    last = chat.messages[-1]
    thought, _ = split_thought(last) if last["role"] == "assistant" else ("", "")
    is_learned = len(chat.messages) - 1 in chat.learned()
    if not thought or not is_learned or thought in text:
        return None
    if thought in last["content"] or _opens_thoughts(template, chat):
        return f"what the assistant thinks in message {len(chat.messages)}"
    return None


def _is_written(template: Renders, chat: Chat, index: int, text: str) -> bool:
    """Whether another text in place of a message would be seen."""
    messages = [dict(message) for message in chat.messages]
    messages[index]["content"] = _STAND_IN
    try:
        return _render(template, chat, messages) != text
    except RowError:
        return True


def _opens_thoughts(template: Renders, chat: Chat) -> bool:
    try:
        return closing(_render(template, chat, chat.messages[:-1], True)) is not None
    except RowError:
        return False


def _render(
    template: Renders,
    chat: Chat,
    messages: list[Message] | list[dict[str, Any]],
    prompt: bool = False,
) -> str:
    return template.render(
        messages, add_generation_prompt=prompt, tools=chat.tools, arguments=chat.arguments
    )
