"""What a chat has beside its messages' content, and whether the template writes any of it.

A template that knows nothing of tools drops the calls without a word, and the model would be
trained to answer nothing. Whether it does is seen by rendering the chat without them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from edgetune.data.content import Chat
from edgetune.data.problems import RowError
from edgetune.data.template import Message, Renders
from edgetune.data.template_arguments import FIELD

_ALWAYS_READ = {"role", "content", "weight"}
_MOST = 20  # fields of a row that are tried one by one, when not all of them are dropped
_KINDS = 1024
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_CALLS = "tool_calls"
_REASONING = {"reasoning_content", "thinking", "reasoning"}  # transformers takes any for another
ADVICE = "Use a model whose template writes them, or remove the row."


class IgnoredFields:
    """Finds the fields that one template passes over.

    What was found for a chat holds for others with the same fields and roles, so that few are
    rendered again; a refusal is always found anew.
    """

    def __init__(self, template: Renders) -> None:
        """Know nothing yet."""
        self._template = template
        self._found: dict[object, frozenset[str]] = {}

    def fields(self, chat: Chat) -> frozenset[str]:
        """Return the fields of messages that make no difference to what the template writes.

        Raises:
            RowError: if these are tool calls, or if the tools make no difference.
        """
        roles = frozenset((m["role"], *sorted(_extra(m))) for m in chat.messages)
        key = roles, bool(chat.tools), frozenset(chat.arguments)
        if key not in self._found:
            if len(self._found) == _KINDS:
                self._found.clear()
            self._found[key] = _ignored(self._template, chat)
        return self._found[key]


def _ignored(template: Renders, chat: Chat) -> frozenset[str]:
    found = {name for message in chat.messages for name in _extra(message)}
    if not found and not chat.tools and not chat.arguments:
        return frozenset()
    text = _render(template, chat)
    if chat.tools and _is_same(template, replace(chat, tools=None), text):
        raise RowError(f"The chat template does not write the tools. {ADVICE}")
    if not found or _is_same(template, _without(chat, found), text):
        unwritten = found
    else:
        tried = sorted(found, key=lambda name: (name != _CALLS, name))[:_MOST]
        unwritten = {name for name in tried if _is_same(template, _without(chat, [name]), text)}
    if _CALLS in unwritten:
        number = next(n for n, message in enumerate(chat.messages, 1) if message.get(_CALLS))
        raise RowError(
            f"The chat template does not write the tool calls of message {number}. {ADVICE}"
        )
    _refuse_lost_arguments(template, chat, text)
    return frozenset(unwritten) | {
        f"{FIELD}.{name}"
        for name in chat.arguments
        if _is_same(template, _unasked(chat, name), text)
    }


def _refuse_lost_arguments(template: Renders, chat: Chat, text: str) -> None:
    """Refuse calls of which the template writes the names and not the arguments."""
    for number, message in enumerate(chat.messages, 1):
        calls = message.get(_CALLS) or []
        empty = [_without_arguments(call) for call in calls]
        messages = [
            *chat.messages[: number - 1],
            {**message, _CALLS: empty},
            *chat.messages[number:],
        ]
        if empty != calls and _is_same(template, replace(chat, messages=messages), text):
            raise RowError(
                f"The chat template does not write the arguments of the tool calls of message {number}."
                f" {ADVICE}"
            )


def _without_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    return {**call, "function": {**function, "arguments": {}}} if function else call


def _extra(message: Message) -> Iterable[str]:
    return (name for name, value in message.items()
            if name not in _ALWAYS_READ and value not in _NOTHING)  # fmt: skip


def _without(chat: Chat, names: Iterable[str]) -> Chat:
    left_out = set(names)
    left_out |= _REASONING if left_out & _REASONING else set()
    kept = [{k: v for k, v in message.items() if k not in left_out} for message in chat.messages]
    return replace(chat, messages=kept)


def _unasked(chat: Chat, name: str) -> Chat:
    left = {other: value for other, value in chat.arguments.items() if other != name}
    return replace(chat, arguments=left)


def _render(template: Renders, chat: Chat, prompt: bool = False) -> str:
    return template.render(
        chat.messages, add_generation_prompt=prompt, tools=chat.tools, arguments=chat.arguments
    )


def _is_same(template: Renders, chat: Chat, text: str) -> bool:
    try:
        return _render(template, chat) == text
    except RowError:  # it misses what was taken away
        return False
