"""What is learned of a chat, found by hand: pieces of text, each learned or not, to a mask."""

from __future__ import annotations

from functools import cache
from typing import Any

from data_support import tokens_and_mask

from edgetune.data import Tokenizer
from edgetune.data.content import Chat
from edgetune.data.encode import Encoder

Piece = tuple[str, bool]  # a text and whether it is learned
Messages = list[dict[str, Any]]


def reference_mask(pieces: list[Piece], tokenizer: Tokenizer) -> list[bool]:
    """Walk through the tokens byte by byte; a token is learned if any of its bytes is."""
    flags = [learned for text, learned in pieces for _ in text.encode()]
    mask, at = [], 0
    for token in tokenizer.encode("".join(text for text, _ in pieces)):
        width = len(tokenizer.text_of(token) or "")  # byte-level: a letter a byte
        mask.append(any(flags[at : at + width]))
        at += width
    assert at == len(flags)
    return mask


@cache
def encoder_of(tokenizer: Tokenizer) -> Encoder:
    """Return one encoder for all examples of a test, as one reads a whole file."""
    return Encoder(tokenizer, "assistant")


def encoded(
    tokenizer: Tokenizer, messages: Messages, tools: list[Any] | None = None
) -> tuple[list[int], list[bool]]:
    """Return the tokens of a chat, and of each whether it is learned."""
    encoder = encoder_of(tokenizer)
    return tokens_and_mask(encoder.encode([encoder.mark(Chat(messages, tools))])[0])
