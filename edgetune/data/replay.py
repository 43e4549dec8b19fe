"""Rendering and masking chats of a known structure without running the template again.

The first chat of a structure goes the whole way (:mod:`masks`), and once more with marks in
place of what is said. What comes out is a :class:`Pattern`: literal text, slots for what is
said, and where the learned spans begin and end. As the proof of the mask was carried out on
the marks, it holds for every chat of this structure that answers the template's questions
alike. Any other chat, and any template that cannot be followed, goes the whole way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from edgetune.data.content import Chat
from edgetune.data.control_tokens import any_of
from edgetune.data.masks import ChatMasker, Masked
from edgetune.data.problems import RowError
from edgetune.data.symbolic import Part, Question, Slot, Trace, UntraceableError, answer, mark_of
from edgetune.data.template import FAULTS, ChatTemplate, Span
from edgetune.data.thoughts import FIELDS, has_mark, split_thought
from edgetune.data.trace import TracedTemplate, Tracer

_MARK = re.compile("\ue000(\\d+)\ue001(?:\ue002(\\d+)\ue003)?|\ue002(\\d+)\ue003")
_PATTERNS_A_STRUCTURE = 8
_STRUCTURES = 1024

Structure = tuple[object, ...]


class Rendered(NamedTuple):
    """A chat as text, its learned spans, whether anything said is missing, and fields unwritten.

    ``cut`` is what the last answer lacks of the generation prompt.
    """

    text: str
    spans: list[Span]
    altered: bool
    unwritten: frozenset[str] = frozenset()
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What all chats of a structure become.

    ``bounds`` are the beginnings and ends of the spans in turn, each as the number of parts
    before it and the characters after those. ``controls`` counts the control texts.
    """

    parts: tuple[Part, ...]
    bounds: tuple[tuple[int, int], ...]
    answers: tuple[tuple[Question, bool], ...]
    controls: int
    is_whole: bool
    cut: str

    def fill(self, contents: Sequence[str]) -> tuple[str, list[Span]] | None:
        """Return text and spans for these contents, None if they answer a question otherwise."""
        if any(answer(question, contents) is not expected for question, expected in self.answers):
            return None
        pieces = [part if isinstance(part, str) else part.value(contents) for part in self.parts]
        starts = list(accumulate(map(len, pieces), initial=0))
        locations = [starts[number] + offset for number, offset in self.bounds]
        return "".join(pieces), list(zip(locations[::2], locations[1::2], strict=True))


class ReplayingMasker:
    """A :class:`ChatMasker` that goes the whole way once a structure."""

    def __init__(
        self, template: ChatTemplate, ends: Iterable[str], controls: Iterable[str]
    ) -> None:
        """Take what a :class:`ChatMasker` takes."""
        self._texts = tuple(ends), tuple(controls)
        self._masker = ChatMasker(template, *self._texts)
        self._controls = any_of(self._texts[1])
        self._patterns: dict[Structure, list[Pattern]] = {}
        try:
            self._tracer: Tracer | None = Tracer(template)
        except (UntraceableError, *FAULTS):  # every chat then goes the whole way
            self._tracer = None

    def mask(self, chat: Chat, loss_on: str) -> Rendered:
        """Return the rendered chat and what is learned of it.

        Raises:
            RowError: if nothing is to be learned, or what is cannot be told for certain.
        """
        structure = _structure(chat, loss_on) if self._tracer else None
        if structure is None:
            return self._whole_way(chat, loss_on)
        contents = [message["content"] for message in chat.messages]
        patterns = self._patterns.get(structure, [])
        for pattern in patterns:
            filled = pattern.fill(contents)
            as_many = filled and len(self._controls.findall(filled[0])) == pattern.controls
            if filled and as_many and (pattern.is_whole or chat.is_in(filled[0])):
                return Rendered(*filled, altered=False, cut=pattern.cut)
        rendered = self._whole_way(chat, loss_on)
        if len(patterns) < _PATTERNS_A_STRUCTURE and len(self._patterns) < _STRUCTURES:
            self._learn(structure, chat, loss_on, rendered)
        return rendered

    def _whole_way(self, chat: Chat, loss_on: str) -> Rendered:
        unwritten = self._masker.unwritten(chat)
        text, spans, cut, rewritten = _masked(self._masker, chat, loss_on)
        if unwritten & set(FIELDS) and (split_thought(chat.messages[-1])[0] or text) in text:
            unwritten -= set(
                FIELDS
            )  # the template does not write a thought, but the prompt begins it
        altered = rewritten or not chat.is_in(text, unwritten)
        return Rendered(text, spans, altered, unwritten, cut)

    def _learn(self, structure: Structure, chat: Chat, loss_on: str, rendered: Rendered) -> None:
        """Keep the pattern of a chat, if there is one that gives the same again."""
        try:
            pattern = self._pattern(chat, loss_on)
        except (UntraceableError, RowError, *FAULTS):
            pattern = None
        contents = [message["content"] for message in chat.messages]
        if pattern and (*(pattern.fill(contents) or ()), pattern.cut) == (
            *rendered[:2],
            rendered.cut,
        ):
            self._patterns.setdefault(structure, []).append(pattern)

    def _pattern(self, chat: Chat, loss_on: str) -> Pattern:
        assert self._tracer is not None
        trace = Trace([message["content"] for message in chat.messages])
        marks = [{**m, "content": mark_of(i)} for i, m in enumerate(chat.messages)]
        marked = replace(chat, messages=marks)
        masker = ChatMasker(TracedTemplate(self._tracer, trace), *self._texts)
        text, spans, cut, _ = _masked(masker, marked, loss_on)
        parts, starts = _parts(text, list(trace.slots))
        whole = {part.message for part in parts if isinstance(part, Slot) and part.is_whole}
        return Pattern(
            parts=parts,
            bounds=tuple(_bound(place, starts, parts) for span in spans for place in span),
            answers=tuple(trace.answers.items()),
            controls=len(self._controls.findall(text)),
            is_whole=len(whole) == len(chat.messages),
            cut=cut,
        )


def _masked(masker: ChatMasker, chat: Chat, loss_on: str) -> Masked:
    if loss_on == "all":
        return masker.whole(chat)
    return masker.spans(chat, last_only=loss_on == "completion")


def _structure(chat: Chat, loss_on: str) -> Structure | None:
    """Return what two chats must share to be written alike, None if it is more than roles."""
    if chat.tools or any(
        message.keys() - {"role", "content", "weight"} for message in chat.messages
    ):
        return None
    arguments = json.dumps(chat.arguments, sort_keys=True, default=str) if chat.arguments else ""
    return (
        loss_on,
        chat.given,
        arguments,
        *((each["role"], each.get("weight"), _kind(each["content"])) for each in chat.messages),
    )


def _kind(content: str) -> tuple[bool, bool]:
    """Return what masking a chat asks of a message itself: has it a thought, is it blank?"""
    return has_mark(content), not content.strip()


def _parts(text: str, slots: list[Slot]) -> tuple[tuple[Part, ...], list[int]]:
    """Return the parts of a text with marks, and where in it each begins."""
    parts: list[Part] = []
    starts, at = [], 0
    for found in _MARK.finditer(text):
        message, *derived = found.groups()
        number = next(filter(None, derived), None)
        slot = Slot(int(message)) if number is None else slots[int(number)]
        parts += [text[at : found.start()], slot]
        starts += [at, found.start()]
        at = found.end()
    return (*parts, text[at:]), [*starts, at]


def _bound(place: int, starts: list[int], parts: tuple[Part, ...]) -> tuple[int, int]:
    """Return a place in a text with marks as the parts before it and the characters after."""
    number = max(i for i, start in enumerate(starts) if start <= place)
    offset = place - starts[number]
    if offset and isinstance(parts[number], Slot):
        raise UntraceableError("a span that begins or ends within what is said")
    return number, offset
