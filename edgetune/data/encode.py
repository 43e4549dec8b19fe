"""Rows to tokens and loss masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgetune.data.content import Chat, Completion, Content, Labelled, Text
from edgetune.data.joined_parts import PartsJoiner
from edgetune.data.offsets import Encoded, Ids
from edgetune.data.problems import RowError
from edgetune.data.replay import ReplayingMasker
from edgetune.data.template import Span
from edgetune.data.tokenizer import Tokenizer
from edgetune.escapes import half_character

LossOn = Literal["assistant", "completion", "all"]


@dataclass(frozen=True, slots=True)
class Marked:
    """A text, the spans of it that are learned, and the token that must be put after it, if any.

    ``altered`` says that the template left out or changed some of what the row says,
    ``unwritten`` which fields of its messages made no difference, and ``cut`` what the last answer
    lacks of the generation prompt; ``is_unended`` says that a turn is learned without its end,
    ``is_desirable`` that it is an unpaired answer to prefer.
    """

    text: str
    spans: list[Span]
    end: int | None
    altered: bool = False
    unwritten: frozenset[str] = frozenset()
    cut: str = ""
    is_unended: bool = False
    is_desirable: bool = False


@dataclass(frozen=True, slots=True)
class Learned:
    """Tokens of a row, and the ranges of them that are under loss.

    ``first`` counts the tokens of the document with the better answer, which comes first: 0 in
    rows of plain answers and of worse ones alone.
    """

    tokens: Ids
    ranges: list[Span]
    first: int = 0

    def followed(self, other: Learned) -> Learned:
        """Return two documents as one row; the first token of the second is not learned."""
        first = len(self.tokens)
        ranges = [(first + max(start, 1), first + stop) for start, stop in other.ranges]
        tokens = np.concatenate([self.tokens, other.tokens])
        return Learned(tokens, [*self.ranges, *ranges], first)


class Encoder:
    """Turns what rows hold into tokens and masks, as one model and one ``loss_on`` want it.

    With a chat template of its own, a model is given prompts and completions as chats, the way
    it is used; without one they are plain text.
    """

    def __init__(self, tokenizer: Tokenizer, loss_on: LossOn) -> None:
        """Prepare for rows of any format."""
        self._tokenizer, self._loss_on = tokenizer, loss_on
        self._masker: ReplayingMasker | None = None
        self._parts = PartsJoiner(tokenizer)

    def is_chat(self, content: Content) -> bool:
        """Whether the chat template is used for this content."""
        return isinstance(self._as_rendered(content), Chat)

    def mark(self, content: Content) -> Marked:
        """Return the text of a row and what of it is learned.

        Raises:
            RowError: if nothing can be learned from it, or not for certain.
        """
        rendered = self._as_rendered(content)
        if isinstance(rendered, Chat):
            self._refuse_weights(rendered)
            text, spans, altered, unwritten, cut = self._chats().mask(rendered, self._loss_on)
        else:
            (text, spans), altered, unwritten, cut = self._plain(rendered), False, frozenset(), ""
        if found := half_character(text):
            raise RowError(found)
        is_chat = isinstance(rendered, Chat)
        end = self._end(text, spans[-1], is_chat)
        ended = spans if end is None else spans[:-1]
        if end is not None:
            spans = [*spans[:-1], (spans[-1][0], len(text))]
        is_unended = (
            is_chat
            and self._loss_on != "all"
            and not all(
                text[start:stop].rstrip().endswith(self._tokenizer.end_texts)
                for start, stop in ended
            )
        )
        return Marked(text, spans, end, altered, unwritten, cut, is_unended)

    def encode(self, rows: Sequence[Marked]) -> list[Learned]:
        """Return the tokens of each row: BOS at most once in front, its end learned."""
        encoded = self._tokenizer.encode_many([row.text for row in rows])
        return [self._finish(row, tokens) for row, tokens in zip(rows, encoded, strict=True)]

    def _as_rendered(self, content: Content) -> Chat | Completion | Text:
        if isinstance(content, Labelled):
            content = content.as_completion()
        if isinstance(content, Completion) and self._tokenizer.has_template:
            return content.as_chat()
        if isinstance(content, Chat):
            return self._parts.joined(content)
        return content

    def _plain(self, content: Completion | Text) -> tuple[str, list[Span]]:
        prompt, learned = content.as_plain()
        text = prompt + learned
        return text, [(0 if self._loss_on == "all" else len(prompt), len(text))]

    def _chats(self) -> ReplayingMasker:
        if self._masker is None:
            own = self._tokenizer
            self._masker = ReplayingMasker(own.template, own.end_texts, own.controls)
        return self._masker

    def _refuse_weights(self, chat: Chat) -> None:
        """Refuse a message that is not to be learned where everything is."""
        weightless = [n for n, each in enumerate(chat.messages, 1) if each.get("weight") == 0]
        if weightless and self._loss_on == "all":
            raise RowError(
                f"Message {weightless[0]} has weight 0, and --loss-on all learns every message."
                " Use --loss-on assistant, or remove the weight."
            )

    def _end(self, text: str, last: Span, is_chat: bool) -> int | None:
        """Return the token to put after a text that ends with something learned and no such token."""
        if text[last[1] :].strip() or text.rstrip().endswith(self._tokenizer.end_texts):
            return None
        return self._tokenizer.turn_end if is_chat else self._tokenizer.eos_id

    def _finish(self, row: Marked, encoded: Encoded) -> Learned:
        tokens = self._tokenizer.with_bos(encoded.ids)
        shift = len(tokens) - len(encoded.ids)
        found = [encoded.tokens_of(span, self._tokenizer.is_special) for span in row.spans]
        ranges = [(max(start + shift, 0), stop + shift) for start, stop in found]
        if row.end is not None:
            ranges.append((len(tokens), len(tokens) + 1))
            tokens = np.append(tokens, np.int32(row.end))
        return Learned(tokens, ranges, len(tokens) if row.is_desirable else 0)
