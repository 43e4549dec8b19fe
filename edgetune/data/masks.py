"""Which characters of a rendered chat are learned: what the assistant says, and its end of turn.

A template that marks them is believed, once checked against the messages. Otherwise a turn is
what lies between the text that generation would start from and the end-of-turn token. A turn
that cannot be placed beyond doubt is refused: a wrong mask trains the wrong thing silently.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edgetune.data.content import Chat
from edgetune.data.control_tokens import any_of, refuse_control_tokens
from edgetune.data.ignored_fields import ADVICE, IgnoredFields
from edgetune.data.lost_parts import lost_parts
from edgetune.data.problems import RowError
from edgetune.data.sampled import SampledTemplate
from edgetune.data.template import Renders, Span
from edgetune.data.turn_places import ELSEWHERE, Turn, TurnPlaces, holds


class Masked(NamedTuple):
    """A rendered chat, its learned spans, and what the last one lacks of the generation prompt.

    ``cut`` is the end of the generation prompt that does not stand before the answer, ``""`` if
    all of it does; ``is_rewritten`` says that a call is written otherwise than it is sampled.
    """

    text: str
    spans: list[Span]
    cut: str = ""
    is_rewritten: bool = False


class ChatMasker:
    """Renders chats and finds what is learned, for one template and its end-of-turn texts."""

    def __init__(self, template: Renders, ends: Iterable[str], controls: Iterable[str]) -> None:
        """Take the texts of the tokens that end a turn, and of all that structure a chat."""
        self._template, self._ignored = template, IgnoredFields(template)
        self._ends, self._controls = any_of(ends), any_of(controls)
        self._places = TurnPlaces(template, self._ends, self._controls)
        sampled = SampledTemplate(template, self._ends, self._controls)
        self._sampled = TurnPlaces(sampled, self._ends, self._controls)

    def spans(self, chat: Chat, *, last_only: bool = False) -> Masked:
        """Return the rendered chat and the spans that are learned, in order.

        Raises:
            RowError: if nothing is to be learned, or what is cannot be told for certain.
        """
        refuse_control_tokens(chat, self._controls)
        learned = chat.learned()
        if not learned:
            raise RowError(_nothing(chat))
        turns = learned[-1:] if last_only else learned
        text, marked = self._template.render_marked(chat.messages, chat.tools, chat.arguments)
        lost = lost_parts(self._template, chat, text)
        found = [] if lost else self._turns(chat, text, turns, marked)
        cut = ELSEWHERE if lost else self._places.cut(chat, text, turns[-1], found[-1])
        if cut == ELSEWHERE and (lost or turns[-1] + 1 == len(chat.messages)):
            sampled = self._as_sampled(chat, lost)
            if sampled is not None:
                text, cut = sampled, ""
                found = [self._sampled.turn(chat, text, index) for index in turns]
        rewritten = any(
            self._is_rewritten(chat, text, *pair) for pair in zip(turns, found, strict=True)
        )
        return Masked(text, [(turn.start, turn.stop) for turn in found], cut, rewritten)

    def _turns(self, chat: Chat, text: str, turns: list[int], marked: list[Span]) -> list[Turn]:
        """Return where some of the assistant's turns stand; the template may mark all of them."""
        every = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if len(marked) != len(every):
            return [self._places.turn(chat, text, index) for index in turns]
        spans = dict(zip(every, marked, strict=True))
        return [self._marked(chat, text, index, spans[index]) for index in turns]

    def _is_rewritten(self, chat: Chat, text: str, index: int, turn: Turn) -> bool:
        """Whether calls that more follows are written otherwise than when they are sampled."""
        if not chat.calls(index) or index + 1 == len(chat.messages):
            return False
        try:
            sampled = self._places.sampled(chat, index)
        except RowError:
            return False
        return sampled is not None and not sampled.rstrip().endswith(
            text[turn.start : turn.stop].rstrip()
        )

    def whole(self, chat: Chat) -> Masked:
        """Return the rendered chat and all of it as one span."""
        refuse_control_tokens(chat, self._controls)
        text = self._places.render(chat, chat.messages)
        if lost := lost_parts(self._template, chat, text):
            text = self._as_sampled(chat, lost) or text
        return Masked(text, [(0, len(text))])

    def unwritten(self, chat: Chat) -> frozenset[str]:
        """Return the fields of messages that the template passes over.

        Raises:
            RowError: if it passes over tools or their calls.
        """
        return self._ignored.fields(chat)

    def _as_sampled(self, chat: Chat, lost: str | None) -> str | None:
        """Return a chat as the prompt and the answer, for one that the template writes otherwise.

        Raises:
            RowError: if it leaves out something, and so does the prompt.
        """
        try:
            is_answered = chat.messages[-1]["role"] == "assistant"
            text = self._sampled.render(chat, chat.messages) if is_answered else None
        except RowError:
            text = None
        if lost and (text is None or lost_parts(self._template, chat, text)):
            raise RowError(f"The chat template does not write {lost}. {ADVICE}")
        return text

    def _marked(self, chat: Chat, text: str, index: int, span: Span) -> Turn:
        start, stop = span
        if not holds(chat, index, text[start:stop]):
            return self._places.turn(chat, text, index)
        prompt = self._places.prompt_end(chat, text, index)
        start = start if prompt is None or prompt > stop else prompt
        inside = list(self._ends.finditer(text, start, stop))
        return Turn(start, inside[-1].end() if inside else self._places.closed(text, stop))


def _nothing(chat: Chat) -> str:
    if _assistant_turns(chat):
        return (
            "All that the assistant says is marked to be only read, so there is nothing to learn."
        )
    return "No message is the assistant's: there is nothing to learn. Add one or remove the row."


def _assistant_turns(chat: Chat) -> int:
    return sum(message["role"] == "assistant" for message in chat.messages)
