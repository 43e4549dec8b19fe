"""Messages of several text parts, joined with what the model's template puts between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgetune.data.content import Chat
from edgetune.data.problems import RowError
from edgetune.data.template import ChatTemplate, Message
from edgetune.data.tokenizer import Tokenizer

_ONE, _TWO = "edgetuneXone", "edgetuneXtwo"
_CHAT: list[Message] = [
    {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
]  # fmt: skip


class PartsJoiner:
    """Joins the parts of messages for one template, which is asked once for each role."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Know nothing yet; a model without a template has none to ask."""
        self._tokenizer = tokenizer
        self._between: dict[str, str | None] = {}

    def joined(self, chat: Chat) -> Chat:
        """Return a chat whose messages have one text each.

        Raises:
            RowError: if the template does more with the parts of a message than join them.
        """
        if all(isinstance(message["content"], str) for message in chat.messages):
            return chat
        parted = [i for i, each in enumerate(chat.messages) if not isinstance(each["content"], str)]
        template = self._tokenizer.template
        between = {i: self._of(template, chat.messages[i]["role"]) for i in parted}
        messages, listed = list(chat.messages), list(chat.messages)
        for i, text in between.items():
            parts = chat.messages[i]["content"]
            messages[i] = {**messages[i], "content": (text or "").join(parts)}
            as_parts = [{"type": "text", "text": part} for part in parts]
            listed[i] = {
                **messages[i],
                "content": messages[i]["content"] if text is None else as_parts,
            }
        joined = replace(chat, messages=messages)
        if any(text is not None for text in between.values()):
            _refuse_others(template, joined, replace(chat, messages=listed))
        return joined

    def _of(self, template: ChatTemplate, role: str) -> str | None:
        """Return what stands between two parts, None if the template takes one text only."""
        if role not in self._between:
            self._between[role] = _between(template, role)
        return self._between[role]


def _refuse_others(template: ChatTemplate, joined: Chat, listed: Chat) -> None:
    try:
        written, meant = (_render(template, chat) for chat in (joined, listed))
    except RowError:  # told when the chat is rendered
        return
    if written != meant:
        raise RowError(
            "The chat template does not write a message in several parts as their texts joined."
            " Give the message as one text."
        )


def _render(template: ChatTemplate, chat: Chat) -> str:
    return template.render(chat.messages, tools=chat.tools, arguments=chat.arguments)


def _between(template: ChatTemplate, role: str) -> str | None:
    parts: list[Any] = [{"type": "text", "text": text} for text in (_ONE, _TWO)]
    message: Message = {"role": role, "content": parts}
    chats = {"user": [message], "assistant": [_CHAT[0], message], "tool": [*_CHAT, message]}
    try:
        text = template.render(chats.get(role, [message, *_CHAT]))
    except RowError:
        return None
    _, one, rest = text.partition(_ONE)
    between, two, _ = rest.partition(_TWO)
    return between if one and two and not between.strip() else None
