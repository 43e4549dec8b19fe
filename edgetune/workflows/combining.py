"""Adapters over one base made into one; for LoRAHub the weights are looked for on a few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter, save_adapter
from edgetune.combining import How, Recipe, combined, minimise
from edgetune.errors import CheckFailedError, UsageError
from edgetune.exporters.folder import needed_bytes, new_folder
from edgetune.methods.lora import LowRank
from edgetune.storage import FLOAT32_BYTES
from edgetune.workflows.over import Over
from edgetune.workflows.references import (
    Adapted,
    opened_references,
    read_each_adapted,
)
from edgetune.workflows.scoring import rows_of, score

EVALUATIONS: Final = 60
"""Weights that LoRAHub tries, if no other number is given."""

BOUND: Final = 1.5
"""Its largest weight (Huang et al. 2024, section 3.3)."""

PENALTY: Final = 0.05
"""What it adds to the loss for each unit of weight (equation 2)."""

LossOf = Callable[[Recipe | None], float]
"""From a recipe, or None for the base, to the loss on the rows."""

_CANDIDATE: Final = "combined"
"""What a session calls the combination that is evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineRequest:
    """What was asked for; None is the way's own choice."""

    names: tuple[str, ...]
    output: Path
    how: How = "cat"
    weights: tuple[float, ...] | None = None
    density: float | None = None
    rank: int | None = None
    seed: int | None = None
    data: Path | None = None
    evaluations: int | None = None
    over: Over = field(default_factory=Over)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What LoRAHub's search tried and found; losses are means over the learned tokens."""

    evaluations: int
    limit: int
    rows: int
    base_loss: float
    single_losses: tuple[float, ...]
    """Of each adapter alone, with weight 1."""
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """What was written."""

    folder: Path
    how: How
    names: tuple[str, ...]
    weights: tuple[float, ...]
    rank: int
    parameters: int
    search: Search | None = None
    notices: tuple[str, ...] = ()


def combine(asked: CombineRequest) -> Combination:
    """Write one adapter made of several over the same base to a new folder.

    Raises:
        UsageError: if they are not LoRA over one base, or settings do not suit the way.
        ModelError: if an adapter or the base is missing or damaged.
    """
    _refuse_unread(asked)
    found = read_each_adapted(asked.names, asked.over)
    recipe, search = _recipe(asked), None
    model = found[0].model
    most = [x.size * FLOAT32_BYTES for one in found for x in one.adapter.tensors.values()]
    with new_folder(asked.output, needed_bytes(most)) as folder:
        if asked.how == "lorahub":
            recipe, search = _searched(asked, found, recipe)
        adapter = _combined(found, recipe)
        save_adapter(folder, adapter.method, model.shape, adapter.tensors, base=model.ref)
    method = adapter.method
    assert isinstance(method, LowRank), "what is combined are updates of low rank"
    return Combination(
        folder=asked.output,
        how=asked.how,
        names=asked.names,
        weights=recipe.weights,
        rank=max(map(method.rank_of, method.select(model.shape))),
        parameters=method.parameters(model.shape),
        search=search,
        notices=tuple(notice for one in found for notice in one.notices),
    )


def _recipe(asked: CombineRequest) -> Recipe:
    """Return the recipe with the usual weights where none are given."""
    usual = Recipe.usual_weights(asked.how, len(asked.names))
    return Recipe(
        how=asked.how,
        weights=usual if asked.weights is None else asked.weights,
        density=asked.density,
        rank=asked.rank,
        seed=asked.seed,
    )


def _combined(found: Sequence[Adapted], recipe: Recipe) -> LoadedAdapter:
    names = [one.name for one in found]
    return combined([one.adapter for one in found], found[0].model.shape, recipe, names)


def _refuse_unread(asked: CombineRequest) -> None:
    """Refuse settings that nothing reads, and those that are missing."""
    if asked.weights is not None and len(asked.weights) != len(asked.names):
        raise UsageError(
            f"--weights has {len(asked.weights)} numbers for {len(asked.names)} adapters. Give one "
            "for each, separated by commas."
        )
    searches = asked.how == "lorahub"
    if searches and (asked.data is None or asked.weights is not None):
        raise UsageError(
            "--how lorahub finds the weights on rows: give rows with --data, and no --weights."
        )
    unread = [name for name in ("data", "evaluations") if getattr(asked, name) is not None]
    computes = asked.over.device != "auto" or asked.over.memory is not None
    unread += ["device or --memory"] if computes else []
    if unread and not searches:
        raise UsageError(
            f"--how {asked.how} does not use --{unread[0]}: it computes with the files alone."
        )
    least = len(asked.names) + 1
    if asked.evaluations is not None and asked.evaluations < least:
        raise UsageError(
            f"--evaluations must be at least {least}: the base and each adapter are tried first."
        )


def _searched(
    asked: CombineRequest, found: Sequence[Adapted], recipe: Recipe
) -> tuple[Recipe, Search]:
    """Return the recipe with the weights that were found, and what was seen on the way.

    The search begins at the base and at each adapter alone, so that it ends at nothing worse.
    """
    assert asked.data is not None
    with _loss_on(asked.data, found, asked.over) as (loss_of, rows):
        return _sought(asked, found, recipe, loss_of, rows)


def _sought(
    asked: CombineRequest,
    found: Sequence[Adapted],
    recipe: Recipe,
    loss_of: LossOf,
    rows: int,
) -> tuple[Recipe, Search]:
    corners = [(0.0,) * len(found), *map(tuple, np.eye(len(found)).tolist())]
    losses: list[float] = []

    def value(weights: NDArray[np.float64]) -> float:
        used = tuple(map(float, weights))
        losses.append(loss_of(replace(recipe, weights=used) if any(used) else None))
        return losses[-1] + PENALTY * sum(map(abs, used))

    limit = asked.evaluations or max(EVALUATIONS, len(corners))
    best = minimise(value, corners, evaluations=limit, bound=BOUND)
    if not any(best.point):
        raise UsageError(
            f"No combination of these adapters predicts the rows of {asked.data} better than the "
            f"base model without them ({best.evaluations} were tried). Nothing is written."
        )
    seen = Search(
        evaluations=best.evaluations,
        limit=limit,
        rows=rows,
        base_loss=losses[0],
        single_losses=tuple(losses[1 : len(corners)]),
        loss=best.value - PENALTY * sum(map(abs, best.point)),
    )
    return replace(recipe, weights=best.point), seen


@contextmanager
def _loss_on(data: Path, found: Sequence[Adapted], over: Over) -> Iterator[tuple[LossOf, int]]:
    """Yield a function from a recipe, or None for the base, to its loss, and the rows it is of.

    The model is opened once.
    """
    first = found[0]
    base = None if first.plan is not None else first.model.ref  # a run says it itself
    with opened_references((first.name,), replace(over, model=base)) as (opened,):
        rows = rows_of(opened, data)

        def loss(recipe: Recipe | None) -> float:
            if recipe is None:
                return score(opened.base(), rows, exact_match=False).loss
            adapter = _combined(found, recipe)
            opened.session.attach(_CANDIDATE, adapter.method, adapter.tensors)
            try:
                tried = replace(opened, adapter=_CANDIDATE, method=adapter.method)
                return score(tried, rows, exact_match=False).loss
            except CheckFailedError:  # not finite
                return inf
            finally:
                opened.session.detach(_CANDIDATE)

        yield loss, len(rows)
