"""Adapters made into one, target by target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.adapters.modules import exact_names
from edgetune.combining.pairs import Pair, combined_pair
from edgetune.combining.recipe import Recipe
from edgetune.errors import UsageError
from edgetune.methods.lora import Lora
from edgetune.methods.targets import Target, select
from edgetune.methods.vera import Vera
from edgetune.shape import ModelShape

Array = NDArray[np.float32]
Tensors = dict[str, Array]


def combined(
    adapters: Sequence[LoadedAdapter], shape: ModelShape, recipe: Recipe, names: Sequence[str]
) -> LoadedAdapter:
    """Return one LoRA adapter; a target that only some have is combined of those.

    ``names`` are the adapters', for what is said of them.

    Raises:
        UsageError: if one adds no updates of low rank, if ranks differ where they have to be the same,
            or if what comes out is too large for float32.
    """
    methods = [_method_of(one, name, shape) for one, name in zip(adapters, names, strict=True)]
    owned = [{target.module: target for target in method.select(shape)} for method in methods]
    tensors: Tensors = {}
    for target in select(shape, ("all-linear",)):
        pairs = [
            _pair(method, target, one, weight)
            for method, one, weight, own in zip(
                methods, adapters, recipe.weights, owned, strict=True
            )
            if target.module in own
        ]
        if pairs:
            a, b = _finite_pair(pairs, recipe, target.module)
            tensors[f"{target.module}.lora_A.weight"] = np.ascontiguousarray(a)
            tensors[f"{target.module}.lora_B.weight"] = np.ascontiguousarray(b)
    return LoadedAdapter(method=_method(tensors, shape), tensors=tensors, base=adapters[0].base)


def _finite_pair(pairs: Sequence[Pair], recipe: Recipe, module: str) -> tuple[Array, Array]:
    """Return A and B of a target whose product is finite too."""
    with np.errstate(all="ignore"):  # looked at below
        try:
            a, b = combined_pair(pairs, recipe, module)
            most = float(np.abs(a).max()) * float(np.abs(b).max()) * len(a)
        except np.linalg.LinAlgError:  # of numbers that are none
            most = inf
    if not most < np.finfo(np.float32).max:
        weights = ", ".join(f"{weight:g}" for weight in recipe.weights)
        raise UsageError(
            f"--how {recipe.how} with the weights {weights} makes numbers for {module} that are too "
            "large for float32, or none. Give smaller --weights. Nothing is written."
        )
    return a, b


def _method_of(adapter: LoadedAdapter, name: str, shape: ModelShape) -> Lora | Vera:
    if not isinstance(adapter.method, Lora | Vera):
        raise UsageError(
            f"{name} is an adapter of the method {adapter.method.kind}. Only LoRA and VeRA adapters "
            "can be combined: what others do is not a sum."
        )
    if isinstance(adapter.method, Lora) and adapter.method.modules_to_save:
        raise UsageError(
            f"{name} has trained {' and '.join(adapter.method.modules_to_save)} beside its updates, "
            "which would be lost. Combine adapters that have updates alone."
        )
    if isinstance(adapter.method, Lora) and adapter.method.adapts_experts(shape):
        raise UsageError(
            f"{name} adapts experts, whose updates are not combined. Train or combine adapters of "
            "other targets (--targets all-linear)."
        )
    return adapter.method


def _pair(method: Lora | Vera, target: Target, adapter: LoadedAdapter, weight: float) -> Pair:
    update = method.update(target, adapter.tensors)
    a, b = update.right, update.left
    if target.linear.transposed:
        a, b = update.left.T, update.right.T
    return Pair(a, b, weight * update.scale)


def _method(tensors: Mapping[str, NDArray[np.float32]], shape: ModelShape) -> Lora:
    """Return LoRA of scale 1 with the ranks of these tensors."""
    end = ".lora_A.weight"
    ranks = {name.removesuffix(end): len(x) for name, x in tensors.items() if name.endswith(end)}
    rank = max(ranks.values())
    own = tuple(_entries(shape, ranks, rank))
    return Lora(
        rank=rank,
        alpha=float(rank),
        targets=exact_names(shape, list(ranks)),
        rank_pattern=own,
        alpha_pattern=own,
    )


def _entries(shape: ModelShape, ranks: Mapping[str, int], usual: int) -> Iterator[str]:
    """Yield a pattern's entries for the modules of another rank."""
    for rank in sorted(set(ranks.values()) - {usual}):
        modules = [module for module, own in ranks.items() if own == rank]
        yield from (f"{name}={rank}" for name in exact_names(shape, modules))
