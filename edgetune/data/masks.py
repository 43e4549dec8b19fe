"""Which characters of a rendered chat are learned: what the assistant says, and its end of turn.

A template that marks them is believed, once checked against the messages. Otherwise a turn is
what lies between the text that generation would start from and the end-of-turn token. A turn
that cannot be placed beyond doubt is refused: a wrong mask trains the wrong thing silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from edgetune.data.content import Chat
from edgetune.data.controls import any_of, refuse_controls
from edgetune.data.problems import RowError
from edgetune.data.template import Message, Span

_STAND_IN = "edgetuneXanswer"
_ALTERED = (
    "The chat template does not write message {} ({}) as it stands, so what to learn is unclear."
)


class Renders(Protocol):
    """What a masker needs of a :class:`ChatTemplate`."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: list[Any] | None = None,
    ) -> str:
        """Return a conversation as text."""

    def render_marked(
        self, messages: Sequence[Message], tools: list[Any] | None = None
    ) -> tuple[str, list[Span]]:
        """Return the text and the parts of it that are marked as the assistant's."""


class ChatMasker:
    """Renders chats and finds what is learned, for one template and its end-of-turn texts."""

    def __init__(self, template: Renders, ends: Iterable[str], controls: Iterable[str]) -> None:
        """Take the texts of the tokens that end a turn, and of all that structure a chat."""
        self._template = template
        self._ends, self._controls = any_of(ends), any_of(controls)

    def spans(self, chat: Chat, *, last_only: bool = False) -> tuple[str, list[Span]]:
        """Return the rendered chat and the spans that are learned, in order.

        Raises:
            RowError: if nothing is to be learned, or what is cannot be told for certain.
        """
        refuse_controls(chat, self._controls)
        learned = chat.learned()
        if not learned:
            raise RowError("No message is the assistant's, so there is nothing to learn.")
        turns = learned[-1:] if last_only else learned
        text, marked = self._template.render_marked(chat.messages, chat.tools)
        if marked and len(marked) == _assistant_turns(chat):
            kept = set(turns)
            every = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
            pairs = zip(every, marked, strict=True)
            return text, [self._marked(chat, text, *pair) for pair in pairs if pair[0] in kept]
        return text, [self._turn(chat, text, index) for index in turns]

    def whole(self, chat: Chat) -> tuple[str, list[Span]]:
        """Return the rendered chat and all of it as one span."""
        refuse_controls(chat, self._controls)
        text = self._template.render(chat.messages, tools=chat.tools)
        return text, [(0, len(text))]

    def _marked(self, chat: Chat, text: str, index: int, span: Span) -> Span:
        start, stop = span
        if _content(chat, index) not in text[start:stop]:
            return self._turn(chat, text, index)
        inside = list(self._ends.finditer(text, start, stop))
        return start, inside[-1].end() if inside else self._closed(text, stop)

    def _turn(self, chat: Chat, text: str, index: int) -> Span:
        prompt = self._prefix(chat, text, index, add_generation_prompt=True)
        if prompt is None:
            return self._substituted(chat, text, index)
        end = self._ends.search(text, prompt)
        if end and text[prompt : end.start()].rstrip().endswith(_content(chat, index)):
            return prompt, end.end()
        upto = self._prefix(chat, text, index + 1, add_generation_prompt=False)
        if upto is None or _content(chat, index) not in text[prompt:upto]:
            return self._substituted(chat, text, index)
        return prompt, end.end() if end and end.end() <= upto else upto

    def _prefix(
        self, chat: Chat, text: str, count: int, *, add_generation_prompt: bool
    ) -> int | None:
        """Return how much of the text the first messages are, None if they are not its start."""
        try:
            prefix = self._template.render(
                chat.messages[:count], add_generation_prompt=add_generation_prompt, tools=chat.tools
            )
        except RowError:
            return None
        return len(prefix) if text.startswith(prefix) else None

    def _substituted(self, chat: Chat, text: str, index: int) -> Span:
        """Find a turn by rendering the chat once more with another answer in its place."""
        messages = list(chat.messages)
        messages[index] = {**messages[index], "content": _STAND_IN}
        head, found, tail = self._template.render(messages, tools=chat.tools).partition(_STAND_IN)
        start, stop = len(head), len(text) - len(tail)
        answer = text[start:stop].strip()
        same = bool(found) and start <= stop and text.startswith(head) and text.endswith(tail)
        if not same or not answer or answer not in chat.messages[index]["content"]:
            raise RowError(_ALTERED.format(index + 1, "assistant"))
        return start, self._closed(text, stop)

    def _closed(self, text: str, stop: int) -> int:
        """Return where a turn ends that stops at ``stop``, its end-of-turn token included."""
        blank = stop + len(text[stop:]) - len(text[stop:].lstrip())
        end = self._ends.match(text, blank)
        return end.end() if end else stop


def _assistant_turns(chat: Chat) -> int:
    return sum(message["role"] == "assistant" for message in chat.messages)


def _content(chat: Chat, index: int) -> str:
    return str(chat.messages[index]["content"]).strip()
