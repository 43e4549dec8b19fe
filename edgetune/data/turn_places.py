"""Where the turns of a rendered chat begin and end.

A turn begins where generation would start, and ends with an end-of-turn token. A template may
write the same turn otherwise once more follows, or leave out a part of the generation prompt:
then it is looked for in other ways, each of which proves what it finds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from edgetune.data.content import Chat
from edgetune.data.openings import history_end, opening
from edgetune.data.problems import RowError
from edgetune.data.template import Message, Renders
from edgetune.data.thoughts import split_thought

_STAND_IN = "edgetuneXanswer"
_ALTERED = (
    "The chat template does not write message {} ({}) as it stands, so what to learn is unclear."
)


ELSEWHERE = "\0"
"""In place of a cut: the turn does not begin where the generation prompt ends, nor before."""


class Turn(NamedTuple):
    """Where a learned turn begins and ends.

    ``cut`` is the end of the generation prompt that is missing before it, where that is known.
    """

    start: int
    stop: int
    cut: str = ""


class TurnPlaces:
    """Finds turns in chats that one template has written."""

    def __init__(self, template: Renders, ends: re.Pattern[str], controls: re.Pattern[str]) -> None:
        """Take a template, what ends a turn, and all that structures a chat."""
        self._template, self._ends, self._controls = template, ends, controls

    def turn(self, chat: Chat, text: str, index: int) -> Turn:
        """Return where the assistant's turn, the ``index``-th message, stands in the text.

        Raises:
            RowError: if it cannot be told for certain.
        """
        prompt = self.prompt_end(chat, text, index)
        if prompt is None:
            found = self._relocated(chat, text, index) or self._opened(chat, text, index)
            return found or self._substituted(chat, text, index)
        calls, end = chat.calls(index), self._ends.search(text, prompt)
        said = text[prompt : end.start()] if end else ""
        if end and not calls and _ends_with_content(chat, index, said):
            return Turn(prompt, end.end())
        upto = self._prefix(chat, text, index + 1, add_generation_prompt=False)
        if upto is not None and holds(chat, index, text[prompt:upto]):
            return Turn(prompt, self._with_end(text, self._end_of(chat, index, text, prompt, upto)))
        if not (end and calls and holds(chat, index, said)):
            found = self._relocated(chat, text, index) or self._unended(chat, text, index, prompt)
            return found or self._substituted(chat, text, index)
        if not self._is_written_alike(chat, text[: end.end()], index + 1):
            raise RowError(_ALTERED.format(index + 1, "assistant, with its tool calls"))
        return Turn(prompt, end.end())

    def prompt_end(self, chat: Chat, text: str, index: int) -> int | None:
        """Return where the generation prompt before a turn ends, None if the text begins otherwise."""
        return self._prefix(chat, text, index, add_generation_prompt=True)

    def cut(self, chat: Chat, text: str, index: int, turn: Turn) -> str:
        """Return what of the generation prompt's end is missing in front of a turn.

        Before the last message all of the prompt must stand; before others, of which a template may
        write the history otherwise, its end.
        """
        if turn.cut:
            return turn.cut
        try:
            prompt = self.render(chat, chat.messages[:index], True)
            if text.startswith(prompt) and turn.start == len(prompt):
                return ""
            end = self._history_end(chat, index, prompt)
        except RowError:
            return ELSEWHERE
        if index + 1 == len(chat.messages) or end is None:
            return ELSEWHERE
        return "" if text.endswith(prompt[end:], 0, turn.start) else ELSEWHERE

    def _history_end(self, chat: Chat, index: int, prompt: str) -> int | None:
        def write(messages: Sequence[Message], prompt: bool = False) -> str:
            return self.render(chat, messages, prompt)

        return history_end(write, chat.messages[:index], prompt)

    def closed(self, text: str, stop: int) -> int:
        """Return where a turn ends that stops at ``stop``, its end-of-turn token included."""
        blank = stop + len(text[stop:]) - len(text[stop:].lstrip())
        end = self._ends.match(text, blank)
        return end.end() if end else stop

    def render(self, chat: Chat, messages: Sequence[Message], prompt: bool = False) -> str:
        """Return messages as text, with the tools and the arguments of a chat."""
        return self._template.render(
            messages, add_generation_prompt=prompt, tools=chat.tools, arguments=chat.arguments
        )

    def _end_of(self, chat: Chat, index: int, text: str, start: int, stop: int) -> int:
        """Return the end of the first end-of-turn token with all of a turn before it, or ``stop``."""
        ends = self._ends.finditer(text, start, stop)
        return next((e.end() for e in ends if holds(chat, index, text[start : e.start()])), stop)

    def _prefix(
        self, chat: Chat, text: str, count: int, *, add_generation_prompt: bool
    ) -> int | None:
        """Return how much of the text the first messages are, None if they are not its start."""
        try:
            prefix = self.render(chat, chat.messages[:count], add_generation_prompt)
        except RowError:
            return None
        return len(prefix) if text.startswith(prefix) else None

    def _relocated(self, chat: Chat, text: str, index: int) -> Turn | None:
        """Find a turn by its text as it is sampled, where another in its place changes nothing else."""
        other = self._altered(chat, index)
        try:
            said, said_else = self.sampled(chat, index), self.sampled(other, index)
            if said is None or said_else in (None, said) or said not in text:
                return None
            written = self.render(other, other.messages)
        except RowError:
            return None
        places = [
            found.start()
            for found in re.finditer(f"(?={re.escape(said)})", text)
            if written == f"{text[: found.start()]}{said_else}{text[found.start() + len(said) :]}"
        ]
        return Turn(places[0], places[0] + len(said)) if len(places) == 1 else None

    def sampled(self, chat: Chat, index: int) -> str | None:
        """Return what is sampled for a turn, from the chat up to it, None if it cannot be told."""
        prompt = self.render(chat, chat.messages[:index], True)
        upto = self.render(chat, chat.messages[: index + 1])
        if not upto.startswith(prompt) or not holds(chat, index, upto[len(prompt) :]):
            return None
        return upto[len(prompt) : self._end_of(chat, index, upto, len(prompt), len(upto))]

    def _unended(self, chat: Chat, text: str, index: int, start: int) -> Turn | None:
        """Find a turn that ends otherwise where more follows: with other tokens, or with none."""
        try:
            upto = self.render(chat, chat.messages[: index + 1])
        except RowError:
            return None
        said = upto[start:].rstrip()
        while end := next((e for e in self._controls.finditer(said) if e.end() == len(said)), None):
            said = said[: end.start()].rstrip()
        same = upto.startswith(text[:start]) and text.startswith(said, start)
        if not said or not same or not holds(chat, index, said):
            return None
        return Turn(start, self._with_end(text, start + len(said)))

    def _opened(self, chat: Chat, text: str, index: int) -> Turn | None:
        """Find a turn that begins as the generation prompt does, but goes on otherwise."""
        try:
            prompt = self.render(chat, chat.messages[:index], True)
            end = self._history_end(chat, index, prompt)
        except RowError:
            return None
        start = None if end is None else opening(text, prompt, end, self._controls)
        stop = None if start is None else self._stop(chat, text, index, start)
        if start is None or stop is None:
            return None
        whole = stop == len(text) or self._is_written_alike(chat, text[:stop], index + 1)
        return Turn(start, stop, prompt[start:]) if whole else None

    def _stop(self, chat: Chat, text: str, index: int, start: int) -> int | None:
        """Return where a turn ends that begins at ``start``, None if that is unclear."""
        upto = self._prefix(chat, text, index + 1, add_generation_prompt=False)
        if upto is not None and holds(chat, index, text[start:upto]):
            return self._with_end(text, self._end_of(chat, index, text, start, upto))
        for end in self._ends.finditer(text, start):
            said = text[start : end.start()]
            if holds(chat, index, said):
                is_last = chat.calls(index) or _ends_with_content(chat, index, said)
                return end.end() if is_last else None
        return None

    def _with_end(self, text: str, stop: int) -> int:
        """Return the same place, or behind the end-of-turn token if one follows it there."""
        ended = [e for e in self._ends.finditer(text, 0, stop) if not text[e.end() : stop].strip()]
        return stop if ended else self.closed(text, stop)

    def _substituted(self, chat: Chat, text: str, index: int) -> Turn:
        """Find a turn by rendering the chat once more with another answer in its place."""
        head, found, tail = self._with_stand_in(chat, index).partition(_STAND_IN)
        start, stop = len(head), len(text) - len(tail)
        answer = text[start:stop].strip()
        same = bool(found) and start <= stop and text.startswith(head) and text.endswith(tail)
        closed = self.closed(text, stop)
        if not same or not answer or answer not in chat.messages[index]["content"]:
            raise RowError(_ALTERED.format(index + 1, "assistant"))
        if not _holds_calls(chat, index, text[start:closed]):
            raise RowError(_ALTERED.format(index + 1, "assistant, with its tool calls"))
        return Turn(start, closed)

    def _is_written_alike(self, chat: Chat, start: str, index: int) -> bool:
        """Whether the text still starts so when a message, if there is one, says something else."""
        try:
            return index == len(chat.messages) or self._with_stand_in(chat, index).startswith(start)
        except RowError:
            return False

    def _with_stand_in(self, chat: Chat, index: int) -> str:
        messages = list(chat.messages)
        messages[index] = {**messages[index], "content": _STAND_IN}
        return self.render(chat, messages)

    def _altered(self, chat: Chat, index: int) -> Chat:
        """Return the chat with another answer, and one more argument in each call."""
        message = dict(chat.messages[index])
        if message["content"]:
            message["content"] = _STAND_IN
        if message.get("tool_calls"):
            message["tool_calls"] = [_with_argument(call) for call in message["tool_calls"]]
        messages = [*chat.messages[:index], message, *chat.messages[index + 1 :]]
        return replace(chat, messages=messages)


def holds(chat: Chat, index: int, part: str) -> bool:
    """Whether a part of a text has what a message says and calls, apart from its thought."""
    said = _said(chat, index, part)
    return _content(chat, index) in said and _holds_calls(chat, index, part)


def _with_argument(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or call
    arguments = function.get("arguments")
    more = {**(arguments if isinstance(arguments, dict) else {}), "edgetuneX": _STAND_IN}
    changed = {**function, "arguments": more}
    return {**call, "function": changed} if call.get("function") else changed


def _content(chat: Chat, index: int) -> str:
    return split_thought(chat.messages[index])[1]


def _ends_with_content(chat: Chat, index: int, part: str) -> bool:
    return _said(chat, index, part).rstrip().endswith(_content(chat, index))


def _holds_calls(chat: Chat, index: int, part: str) -> bool:
    calls = chat.calls(index)
    said = _said(chat, index, part).replace(_content(chat, index), "", 1) if calls else ""
    return all(said.count(name) >= calls.count(name) for name in calls)


def _said(chat: Chat, index: int, part: str) -> str:
    """Return a part of the text without what is thought: it may hold the same words."""
    message = chat.messages[index]
    beside = [value for field, value in message.items() if field not in ("role", "content")]
    beside = [split_thought(message)[0], *beside]
    for text in dict.fromkeys(value.strip() for value in beside if isinstance(value, str)):
        part = part.replace(text, "", 1)
    return part
