"""What an adapter learned, from its numbers: words of a prompt, singular values, norms; likeness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetune.data import Tokenizer, load_tokenizer
from edgetune.errors import UsageError
from edgetune.insight import likeness, nearest_tokens, spectrum, updates
from edgetune.methods.prompt import NAME, Prompt
from edgetune.model import LocalModel
from edgetune.tensors.reader import read_rows
from edgetune.tensors.writer import row_spans
from edgetune.workflows.over import Over
from edgetune.workflows.references import Adapted, read_adapted, read_each_adapted


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenUpdate:
    """The change of one matrix; ``values`` are its singular values, largest first."""

    layer: int
    target: str
    """The projection's name in its block."""
    expert: int | None
    """The number of the expert that it belongs to, if it does to one."""
    norm: float
    effective_rank: float
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A token near a prompt's row."""

    text: str
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRow:
    """One row of a prompt and the nearest tokens."""

    norm: float
    nearest: tuple[Word, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenTensor:
    """A tensor of the adapter's file."""

    name: str
    shape: tuple[int, ...]
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What can be said of an adapter; empty where its method has nothing like that."""

    name: str
    method: str
    updates: tuple[SeenUpdate, ...]
    prompt: tuple[SeenRow, ...]
    tensors: tuple[SeenTensor, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """The cosines of adapters with each other; None where two cannot be compared."""

    names: tuple[str, ...]
    cosines: tuple[tuple[float | None, ...], ...]
    nearest: str | None
    """The one that is most like the first."""


def inspect_adapter(name: str, over: Over, words: int) -> Inspection:
    """Return what a run's or a folder's adapter learned; only files are read.

    Raises:
        UsageError: if it is a model.
        ModelError: if the adapter or its base is missing or damaged.
    """
    found = read_adapted(name, over)
    changes = tuple(_updates(found))
    prompt = tuple(_rows(found, words)) if isinstance(found.adapter.method, Prompt) else ()
    return Inspection(
        name=name,
        method=found.adapter.method.kind,
        updates=changes,
        prompt=prompt,
        tensors=() if changes or prompt else tuple(_tensors(found)),
        notices=found.notices,
    )


def similarity(names: Sequence[str], over: Over) -> Similarity:
    """Return how alike adapters over one base are.

    Raises:
        UsageError: if there are fewer than two, or the first is comparable with none.
        ModelError: if an adapter or its base is missing or damaged.
    """
    if len(names) < 2:
        raise UsageError("Likeness needs at least two adapters. Name another one.")
    found = read_each_adapted(names, over)
    shape = found[0].model.shape
    cosines = tuple(
        tuple(likeness(one.adapter, other.adapter, shape) for other in found) for one in found
    )
    first = {name: x for name, x in zip(names[1:], cosines[0][1:], strict=True) if x is not None}
    if not first:
        kinds = ", ".join(dict.fromkeys(one.adapter.method.kind for one in found))
        raise UsageError(
            f"{names[0]} cannot be compared with any of the others (methods: {kinds}): prompts compare "
            "with prompts, low-rank updates with each other, the rest if method and size are equal."
        )
    nearest = max(first, key=lambda name: first[name])
    return Similarity(names=tuple(names), cosines=cosines, nearest=nearest)


def _updates(found: Adapted) -> Iterator[SeenUpdate]:
    for target, update in (updates(found.adapter, found.model.shape) or {}).items():
        seen = spectrum(update)
        yield SeenUpdate(
            layer=target.layer,
            target=target.linear.module,
            expert=target.linear.expert,
            norm=seen.norm,
            effective_rank=seen.effective_rank,
            values=seen.values,
        )


def _rows(found: Adapted, words: int) -> Iterator[SeenRow]:
    prompt, model = found.adapter.tensors[NAME], found.model
    tokenizer = load_tokenizer(model.folder, model.shape.vocabulary)
    for row, near in zip(prompt, nearest_tokens(prompt, _table(model), words), strict=True):
        yield SeenRow(
            norm=float(np.linalg.norm(row.astype(np.float64))),
            nearest=tuple(Word(text=_text(tokenizer, x.token), cosine=x.cosine) for x in near),
        )


def _text(tokenizer: Tokenizer, token: int) -> str:
    """Return a token's text; of one that is no whole character, its name in the vocabulary."""
    text = tokenizer.decode([token])
    return (tokenizer.text_of(token) or "") if "\ufffd" in text else text


def _table(model: LocalModel) -> Iterator[NDArray[np.generic]]:
    """Yield the rows of the embedding in pieces."""
    stored = model.tensors[f"{model.shape.embedding}.weight"]
    for start, stop in row_spans(stored.shape):
        yield read_rows(stored, start, stop)


def _tensors(found: Adapted) -> Iterator[SeenTensor]:
    for name, x in sorted(found.adapter.tensors.items()):
        yield SeenTensor(
            name=name, shape=x.shape, norm=float(np.linalg.norm(x.ravel().astype(np.float64)))
        )
