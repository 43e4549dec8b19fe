"""Where the tokens of a text stand in it, found as cheaply as can be proven right."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from unicodedata import is_normalized

import numpy as np
from numpy.typing import NDArray

from edgetune.data.panics import refused_panics
from edgetune.data.template import Span

Ids = NDArray[np.int32]


class Where(Protocol):
    """The places of tokens in a text; a place is a number of characters."""

    def first_after(self, place: int) -> int:
        """Return the first token that ends after a place."""

    def begins_before(self, token: int, place: int) -> bool:
        """Tell whether a token begins before a place."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a text, ``ids`` (T,), and where they stand."""

    ids: Ids
    where: Where

    def tokens_of(self, span: Span, is_special: NDArray[np.bool_]) -> Span:
        """Return the first and the last plus one of the tokens with characters of a span.

        A token that joins the end of a prompt and the start of an answer counts as the answer,
        but for special ones: those can swallow the space after them and are still the prompt's.
        """
        start, stop = span
        first, last = self.where.first_after(start), self.where.first_after(stop)
        if last < len(self.ids) and self.where.begins_before(last, stop):
            last += 1
        while first < last and self._is_cut(first, start, is_special):
            first += 1
        return first, last

    def _is_cut(self, token: int, start: int, is_special: NDArray[np.bool_]) -> bool:
        return bool(is_special[self.ids[token]]) and self.where.begins_before(token, start)


class Locator:
    """Encodes texts with one tokenizer.

    The tokenizer's own offsets cost a sixth of its time. A byte-level tokenizer that changes
    nothing cuts a text in pieces whose bytes are those of the tokens: places then follow from
    lengths alone. It can only leave bytes out, never add any, so that a sum of lengths equal to
    that of the text proves it for this text.
    """

    def __init__(self, inner: Any) -> None:
        """Look at what the tokenizer does to a text."""
        self._inner = inner
        settings = json.loads(inner.to_str())
        normalizer = settings["normalizer"]
        self._normal_form = normalizer["type"] if normalizer else None
        steps = settings["pre_tokenizer"] or {}
        own = next((step for step in steps.get("pretokenizers", [steps])
                    if step.get("type") == "ByteLevel"), None)  # fmt: skip
        exact = own is not None and not own["add_prefix_space"]
        known = self._normal_form in {None, "NFC", "NFKC"}
        self._lengths = _byte_lengths(inner) if exact and known else None

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the tokens of each text, without BOS or EOS around them.

        Raises:
            ModelError: if the tokenizer itself fails.
        """
        with refused_panics():
            return self._encoded(texts)

    def _encoded(self, texts: Sequence[str]) -> list[Encoded]:
        if self._lengths is None:
            found = self._inner.encode_batch(list(texts), add_special_tokens=False)
            return list(map(_by_offsets, found))
        found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        pairs = zip(texts, found, strict=True)
        return [self._by_bytes(text, encoding.ids) for text, encoding in pairs]

    def _by_bytes(self, text: str, tokens: list[int]) -> Encoded:
        assert self._lengths is not None
        ids = np.fromiter(tokens, np.int32, len(tokens))
        ends = np.cumsum(self._lengths[ids])
        size = len(text) if text.isascii() else len(text.encode())
        is_exact = size == (ends[-1] if len(ends) else 0)
        if is_exact and (self._normal_form is None or is_normalized(self._normal_form, text)):
            return Encoded(ids, _Bytes(text, ends))
        return _by_offsets(self._inner.encode(text, add_special_tokens=False))


def _byte_lengths(inner: Any) -> NDArray[np.int64]:
    """Return of each token the bytes of text that it stands for, (V,)."""
    vocabulary = inner.get_vocab(with_added_tokens=False)
    added_tokens = inner.get_added_tokens_decoder()
    lengths = np.zeros(1 + max((*vocabulary.values(), *added_tokens), default=-1), np.int64)
    for text, token in vocabulary.items():
        lengths[token] = len(text)  # in a byte-level vocabulary a letter is a byte
    for token, added in added_tokens.items():
        lengths[token] = len(added.content.encode())
    return lengths


def _by_offsets(encoding: Any) -> Encoded:
    ids = encoding.ids
    return Encoded(np.fromiter(ids, np.int32, len(ids)), _Offsets(encoding))


class _Bytes:
    """Places from where each token ends, in bytes."""

    __slots__ = ("_ends", "_text")

    def __init__(self, text: str, ends: NDArray[np.int64]) -> None:
        self._text = None if text.isascii() else text
        self._ends = ends

    def first_after(self, place: int) -> int:
        return int(np.searchsorted(self._ends, self._bytes(place), side="right"))

    def begins_before(self, token: int, place: int) -> bool:
        return bool((self._ends[token - 1] if token else 0) < self._bytes(place))

    def _bytes(self, place: int) -> int:
        return place if self._text is None else len(self._text[:place].encode())


class _Offsets:
    """Places from the tokenizer's offsets."""

    __slots__ = ("_count", "_offsets_of", "_token_at")

    def __init__(self, encoding: Any) -> None:
        self._count = len(encoding)
        self._offsets_of, self._token_at = encoding.token_to_chars, encoding.char_to_token

    def first_after(self, place: int) -> int:
        found = self._token_at(place)
        if found is None:  # space that belongs to no token, or the end of the text
            return bisect_right(range(self._count), place, key=self._stop)
        while found and self._stop(found - 1) > place:
            found -= 1
        return int(found)

    def begins_before(self, token: int, place: int) -> bool:
        return self._start(token) < place

    def _start(self, token: int) -> int:
        """Return where a token begins, with the space in front that some tokenizers leave out."""
        start = self._offsets_of(token)[0]
        return int(min(start, self._offsets_of(token - 1)[1])) if token else 0

    def _stop(self, token: int) -> int:
        return int(max(self._offsets_of(token)[1], self._start(token) + 1))
