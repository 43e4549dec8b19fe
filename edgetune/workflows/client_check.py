"""A GGUF file in llama.cpp itself, beside the run that it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.backend import DEFAULT_ADAPTER, GenerateOptions, Session
from edgetune.data import Tokenizer
from edgetune.errors import CheckFailedError, ModelError
from edgetune.escapes import short
from edgetune.exporters.check import MergeCheck, MergeLimits, compare, require
from edgetune.exporters.gguf.client import Client
from edgetune.generation import generate
from edgetune.model import LocalModel
from edgetune.planning import Plan
from edgetune.storage import FILE_FORMAT
from edgetune.workflows.opening import open_adapted, open_session

Row = tuple[int, ...]
Logits = dict[Row, NDArray[np.float32]]

PLACES: Final = 4
"""Tokens of each row after which distributions are compared: llama.cpp gives one at a time."""
ANSWER: Final = 16
"""Tokens of the most probable continuations that are compared."""
_ANYWAY: Final = "To write the file anyway: --no-check."
_CHAT: Final = [{"role": "user", "content": "Good morning! Is 1,234 more than 12?"}]

_EXACT: Final = MergeLimits(top1_agreement=0.9)
CLIENT_LIMITS: Final = {
    "f32": _EXACT,
    "f16": _EXACT,
    "bf16": _EXACT,
    "q8_0": MergeLimits(kl_mean=0.03, top1_agreement=0.85, effect_share=1.0),
    "q6_k": MergeLimits(kl_mean=0.1, kl_max=2.0, top1_agreement=0.8, effect_share=1.0),
    "q5_k_m": MergeLimits(kl_mean=0.3, kl_max=4.0, top1_agreement=0.7, effect_share=1.0),
    "q4_k_m": MergeLimits(kl_mean=0.6, kl_max=6.0, top1_agreement=0.6, effect_share=1.0),
    "q4_0": MergeLimits(kl_mean=1.0, kl_max=8.0, top1_agreement=0.5, effect_share=1.0),
}
"""What a good file stays within, by its quantization: far above the error that it makes in models
of a hundred million parameters, and below that of a wrong rotation or a lost adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCheck:
    """How llama.cpp computes the file, beside base and adapter."""

    merge: MergeCheck
    difference: float
    """The largest difference of logits, centred, from those of base and adapter: what rounding
    their sum to the file's formats makes, and llama.cpp's arithmetic."""
    own_difference: float | None
    """The same from our logits over the file itself: llama.cpp's arithmetic alone. None where
    the file is not a model here."""
    same_tokens: int
    """Rows of which both make the same tokens."""
    same_text: int
    """Rows of which both continue the first half with the same most probable text."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What llama.cpp loads: a model's file, and a LoRA's over it."""

    file: Path
    lora: Path | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What base and adapter compute: by the beginnings of rows, the logits (1, V) after them."""

    adapted: Logits
    base: Logits
    answers: dict[Row, list[int]]


def expected(
    plan: Plan, model: LocalModel, adapter: LoadedAdapter, rows: Sequence[Row], ends: frozenset[int]
) -> Expected:
    """Compute what a file is compared with; the session is closed again."""
    found = Expected({}, {}, {})
    with closing(open_adapted(plan, model, adapter)) as session:
        for row in rows:
            found.adapted.update(_logits(session, row, DEFAULT_ADAPTER))
            found.base.update(_logits(session, row, None))
            prompt = row[: len(row) // 2 + 1]
            found.answers[prompt] = _answer(session, prompt, ends)
    return found


def over_file(plan: Plan, file: Path, rows: Sequence[Row]) -> Logits | None:
    """Compute the same over an exported file, in its own formats; None if it is not read here."""
    try:
        model = LocalModel.open(file)
    except ModelError:
        return None
    if model.shape.formats is not None:
        plan = replace(plan, choice=replace(plan.choice, quantization=FILE_FORMAT))
    with closing(open_session(plan, model)) as session:
        found = [_logits(session, row, None) for row in rows]
    return {row: logits for part in found for row, logits in part.items()}


def _logits(session: Session, row: Row, adapter: str | None) -> Logits:
    after = session.logits(row, adapter=adapter)
    return {row[:end]: after[end - 1 : end].copy() for end in _ends(row)}


def check_in_client(
    loaded: Loaded,
    wanted: Expected,
    own: Logits | None,
    tokenizer: Tokenizer,
    *,
    quantization: str,
    context: int,
) -> ClientCheck:
    """Load a file in llama.cpp, compare it, and accept it if it is the model that was trained.

    ``own`` are our logits over the file itself.

    Raises:
        CheckFailedError: if llama.cpp does not load it, makes other tokens or prompts of texts,
            or computes more than the quantization's error apart.
    """
    size = next(iter(wanted.adapted.values())).shape[-1]
    with Client(loaded.file, context=context, adapter=loaded.lora) as client:
        _require_same_prompt(client, tokenizer)
        texts = [_text(prompt, tokenizer) for prompt in wanted.answers]
        same_tokens = _same_tokens(client, tokenizer, texts)
        found = {row: client.log_probabilities(row, size)[None] for row in wanted.adapted}
        merge = compare(
            lambda row: wanted.adapted[tuple(row)],
            lambda row: found[tuple(row)],
            list(wanted.adapted),
            base=lambda row: wanted.base[tuple(row)],
        )
        require(merge, CLIENT_LIMITS[quantization], _ANYWAY)
        same_text = sum(
            _without_end(client.generate(prompt, ANSWER), tokenizer)
            == _without_end(answer, tokenizer)
            for prompt, answer in wanted.answers.items()
        )
    merge = replace(merge, rows=len(texts))
    return ClientCheck(
        merge=merge,
        difference=largest_difference(wanted.adapted, found),
        own_difference=None if own is None else largest_difference(own, found),
        same_tokens=same_tokens,
        same_text=same_text,
    )


def largest_difference(ours: Logits, theirs: Logits) -> float:
    """Return the largest difference of logits, each row's around its mean: a constant is free."""
    return max(float(np.abs(_centred(ours[row]) - _centred(theirs[row])).max()) for row in theirs)


def _centred(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    centred: NDArray[np.float64] = wide - wide.mean(-1, keepdims=True)
    return centred


def _ends(row: Row) -> Iterator[int]:
    yield from sorted({max(1, len(row) * part // PLACES) for part in range(1, PLACES + 1)})


def _answer(session: Session, prompt: Row, ends: frozenset[int]) -> list[int]:
    options = GenerateOptions(max_tokens=ANSWER, end_tokens=ends)
    return [token for _, token in generate(session, [prompt], options)]


def _without_end(tokens: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return an answer up to the token that ends it, which llama.cpp does not give."""
    kept = []
    for token in tokens:
        if token in tokenizer.end_tokens:
            break
        kept.append(token)
    return kept


def _same_tokens(client: Client, tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """Return of how many texts both make the same tokens.

    Raises:
        CheckFailedError: if it is less than half of them: that is another way to cut texts.
    """
    different = []
    for text in texts:
        ours, theirs = tokenizer.encode(text, special=True), client.tokens(text, special=True)
        if ours != theirs:
            different.append((text, ours, theirs))
    if 2 * len(different) > len(texts):
        text, ours, theirs = different[0]
        raise CheckFailedError(
            f"llama.cpp makes other tokens of {len(different)} of {len(texts)} texts: of "
            f"{short(text)} {short(theirs)} instead of {short(ours)}. {_ANYWAY}"
        )
    return len(texts) - len(different)


def _require_same_prompt(client: Client, tokenizer: Tokenizer) -> None:
    if tokenizer.chat_template is None or tokenizer.template.writes_dates:
        return
    bos = tokenizer.text_of(tokenizer.bos_id) or ""  # llama.cpp puts it before the tokens
    ours = tokenizer.render(_CHAT, True).removeprefix(bos)
    theirs = client.rendered(_CHAT).removeprefix(bos)
    if ours != theirs:
        raise CheckFailedError(
            f"llama.cpp renders a chat otherwise: {theirs!r} instead of {ours!r}. {_ANYWAY}"
        )


def _text(row: Row, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(row[1:] if row[:1] == (tokenizer.bos_id,) else row)
