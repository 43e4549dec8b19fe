"""Tensors of files that have all experts of a block, seen as a tensor for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from edgetune.shape import Experts, Fused, ModelShape
from edgetune.tensors.header import StoredTensor


def taken_apart(shape: ModelShape, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of files, those of all experts as one for each projection of each.

    What does not divide evenly is left as it is: its shape will be found to be wrong.
    """
    found = dict(stored)
    for layer, block in enumerate(shape.blocks):
        if block.experts is None:
            continue
        prefix = shape.block(layer)
        for fused in block.experts.fused:
            whole = found.get(f"{prefix}{fused.name}")
            if whole is not None and _divides(whole, block.experts, fused):
                del found[f"{prefix}{fused.name}"]
                found |= {f"{prefix}{name}": x for name, x in _parts(whole, block.experts, fused)}
    return found


def _divides(whole: StoredTensor, experts: Experts, fused: Fused) -> bool:
    shape, parts = whole.shape, len(fused.roles)
    return len(shape) > 1 and shape[0] == experts.number and shape[1] % parts == 0


def _parts(
    whole: StoredTensor, experts: Experts, fused: Fused
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors in the order in which they lie in the file."""
    modules, count = dict(experts.projections), experts.number * len(fused.roles)
    size, start = whole.nbytes // count, whole.start
    shape = (whole.shape[1] // len(fused.roles), *whole.shape[2:])
    for number in range(experts.number):
        for role in fused.roles:
            name = f"{modules[role].format(number)}.{fused.part}"
            yield name, replace(whole, shape=shape, start=start, end=start + size)
            start += size
