"""A ``tokenizer.json`` as the lists that a GGUF file has: tokens, their kinds, merges or scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from edgetune.errors import UsageError
from edgetune.exporters.gguf.pretokenizers import pretokenizer_name
from edgetune.tensors.gguf.writer import Value

NORMAL: Final = 1
UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5
BYTE: Final = 6

_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE: Final = "▁"
_UNREACHED: Final = -1e9
"""The score of a token that no merge makes."""


def vocabulary_metadata(tokenizer: Mapping[str, Any], size: int) -> dict[str, Value]:
    """Return tokens, kinds and merges (byte-level BPE) or scores (SentencePiece) for ``size`` rows.

    Raises:
        UsageError: if llama.cpp does not have this kind of tokenizer.
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise UsageError(
            f"A tokenizer of the kind {model.get('type')} cannot be written to a GGUF file "
            "(known: BPE, byte-level or with byte tokens). Export the model as a folder: --to hf."
        )
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens", ())}
    tokens, kinds = _tokens(model, added, size)
    merges = [_pair(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        specific = _sentencepiece(tokenizer, tokens, merges)
    else:
        specific = _byte_level(tokenizer, merges)
    pairs = {
        **specific,
        "tokens": Value("string", tokens),
        "token_type": Value("int32", kinds),
    }
    return {f"tokenizer.ggml.{name}": value for name, value in pairs.items()}


def _tokens(
    model: Mapping[str, Any], added: Mapping[int, Mapping[str, Any]], size: int
) -> tuple[list[str], list[int]]:
    texts = {number: text for text, number in model["vocab"].items()}
    texts |= {number: entry["content"] for number, entry in added.items()}
    # rows of the embedding that no token has
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = [_kind(model, texts.get(number), added.get(number)) for number in range(size)]
    return tokens, kinds


def _kind(model: Mapping[str, Any], text: str | None, added: Mapping[str, Any] | None) -> int:
    if text is None:
        return UNUSED
    if model.get("byte_fallback"):
        if text == model.get("unk_token"):
            return UNKNOWN
        if _BYTE_TOKEN.fullmatch(text):
            return BYTE
    if added is not None:
        return CONTROL if added.get("special") else USER_DEFINED
    return NORMAL


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _byte_level(
    tokenizer: Mapping[str, Any], merges: Sequence[tuple[str, str]]
) -> dict[str, Value]:
    return {
        "model": Value("string", "gpt2"),
        "pre": Value("string", pretokenizer_name(tokenizer)),
        "merges": Value("string", [f"{first} {second}" for first, second in merges]),
    }


def _sentencepiece(
    tokenizer: Mapping[str, Any], tokens: Sequence[str], merges: Sequence[tuple[str, str]]
) -> dict[str, Value]:
    """Return scores by which llama.cpp merges what the merges' order says: the first one first."""
    ranks: dict[str, int] = {}
    for rank, (first, second) in enumerate(merges):
        ranks.setdefault(first + second, rank)
    scores = [float(-ranks[token]) if token in ranks else _UNREACHED for token in tokens]
    return {
        "model": Value("string", "llama"),
        "pre": Value("string", "default"),
        "scores": Value("float32", scores),
        "add_space_prefix": Value("bool", _adds_space(tokenizer)),
    }


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether a space is put before a text."""
    steps = [*_flat(tokenizer.get("normalizer")), *_flat(tokenizer.get("pre_tokenizer"))]
    prepended = any(x["type"] == "Prepend" and x["prepend"] == _SPACE for x in steps)
    schemes = [x.get("prepend_scheme", "always") for x in steps if x["type"] == "Metaspace"]
    return prepended or any(scheme != "never" for scheme in schemes)


def _flat(step: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(step, dict):
        return
    inner = step.get("normalizers") or step.get("pretokenizers")
    if inner is None:
        yield step
    for each in inner or ():
        yield from _flat(each)
