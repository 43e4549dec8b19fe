"""Rows to tokens and loss masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgetune.data.content import Chat, Completion, Content, Text
from edgetune.data.masks import ChatMasker, token_mask
from edgetune.data.problems import RowError
from edgetune.data.template import Span
from edgetune.data.tokenizer import Encoded, Tokenizer

LossOn = Literal["assistant", "completion", "all"]


@dataclass(frozen=True, slots=True)
class Marked:
    """A text, the spans of it that are learned, and whether EOS must be put after it.

    ``altered`` says that the template left out or changed some of what the row says.
    """

    text: str
    spans: list[Span]
    needs_end: bool
    altered: bool = False


class Encoder:
    """Turns what rows hold into tokens and masks, as one model and one ``loss_on`` want it.

    With a chat template of its own, a model is given prompts and completions as chats, the way
    it is used; without one they are plain text.
    """

    def __init__(self, tokenizer: Tokenizer, loss_on: LossOn) -> None:
        """Prepare for rows of any format."""
        self._tokenizer, self._loss_on = tokenizer, loss_on
        self._masker: ChatMasker | None = None

    def is_chat(self, content: Content) -> bool:
        """Whether the chat template is used for this content."""
        return isinstance(self._as_rendered(content), Chat)

    def mark(self, content: Content) -> Marked:
        """Return the text of a row and what of it is learned.

        Raises:
            RowError: if nothing can be learned from it, or not for certain.
        """
        content = self._as_rendered(content)
        text, spans = self._chat(content) if isinstance(content, Chat) else self._plain(content)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"{text[error.start]!a} at character {error.start + 1}"
            raise RowError(f"The text holds half a character ({found}). Remove it.") from error
        needs_end = self._needs_end(text, spans[-1])
        if needs_end:
            spans = [*spans[:-1], (spans[-1][0], len(text))]
        altered = isinstance(content, Chat) and not content.is_in(text)
        return Marked(text, spans, needs_end, altered)

    def encode(self, rows: Sequence[Marked]) -> list[tuple[list[int], list[bool]]]:
        """Return tokens and mask of each row: BOS at most once in front, its end learned."""
        encoded = self._tokenizer.encode_many([row.text for row in rows])
        return [self._finish(row, tokens) for row, tokens in zip(rows, encoded, strict=True)]

    def _as_rendered(self, content: Content) -> Content:
        if isinstance(content, Completion) and self._tokenizer.has_template:
            return content.as_chat()
        return content

    def _chat(self, chat: Chat) -> tuple[str, list[Span]]:
        if self._loss_on == "all":
            return self._chats().whole(chat)
        return self._chats().spans(chat, last_only=self._loss_on == "completion")

    def _plain(self, content: Completion | Text) -> tuple[str, list[Span]]:
        prompt, learned = content.as_plain()
        text = prompt + learned
        return text, [(0 if self._loss_on == "all" else len(prompt), len(text))]

    def _chats(self) -> ChatMasker:
        if self._masker is None:
            tokenizer = self._tokenizer
            self._masker = ChatMasker(tokenizer.template, tokenizer.end_texts, tokenizer.controls)
        return self._masker

    def _needs_end(self, text: str, last: Span) -> bool:
        """Whether the text ends with something learned and no token says that it ends."""
        learned_to_the_end = not text[last[1] :].strip()
        ended = text.rstrip().endswith(self._tokenizer.end_texts)
        return learned_to_the_end and not ended and self._tokenizer.eos_id is not None

    def _finish(self, row: Marked, encoded: Encoded) -> tuple[list[int], list[bool]]:
        mask = token_mask(encoded, row.spans).tolist()
        tokens = self._tokenizer.with_bos(encoded.tokens)
        mask = [False] * (len(tokens) - len(mask)) + mask
        if row.needs_end and self._tokenizer.eos_id is not None:
            return [*tokens, self._tokenizer.eos_id], [*mask, True]
        return tokens, mask
