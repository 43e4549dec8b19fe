"""Tensors of files that have all experts of a block, seen as a tensor for each.

gpt-oss is published in MX FP4: ``_blocks`` (E, outputs, inputs / 32, 16) and ``_scales`` (E, outputs,
inputs / 32) are in the place of a tensor (E, inputs, outputs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from edgetune.model.names import candidates
from edgetune.shape import Experts, Fused, ModelShape
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed.kinds import Fp4Tensor, PackedTensor, ScaledTensor

_CODES: Final = "_blocks"
_SCALES: Final = "_scales"
_GROUP: Final = 32


def taken_apart(shape: ModelShape, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of files, those of all experts as one for each projection of each.

    What does not divide evenly is left as it is: its shape will be found to be wrong.
    """
    found = dict(stored)
    if not any(kind.experts and kind.experts.fused for kind in shape.kinds):
        return found
    places = {ours: name for name in stored for ours in candidates(shape, name)}
    for layer, block in enumerate(shape.blocks):
        if block.experts is None:
            continue
        prefix = shape.block(layer)
        for fused in block.experts.fused:
            full = f"{prefix}{fused.name}"
            full = places.get(full) or places.get(f"{full}{_CODES}", "").removesuffix(_CODES)
            whole = found.get(full)
            codes, scales = found.get(f"{full}{_CODES}"), found.get(f"{full}{_SCALES}")
            if whole is not None and _divides(whole, block.experts, fused):
                del found[full]
                found |= {f"{prefix}{name}": x for name, x in _parts(whole, block.experts, fused)}
            elif codes is not None and scales is not None and _belong(codes, scales):
                del found[f"{full}{_CODES}"], found[f"{full}{_SCALES}"]
                each = zip(
                    _parts(codes, block.experts, fused),
                    _parts(scales, block.experts, fused),
                    strict=True,
                )
                found |= {f"{prefix}{name}": _matrix(x, y) for (name, x), (_, y) in each}
    return found


def _belong(codes: StoredTensor, scales: StoredTensor) -> bool:
    """Tell whether two tensors are codes and scales of matrices."""
    bytes_alone = codes.dtype == scales.dtype == "uint8"
    return bytes_alone and codes.shape == (*scales.shape, _GROUP // 2) and len(scales.shape) == 3


def _matrix(codes: StoredTensor, scales: StoredTensor) -> Fp4Tensor:
    """Return a matrix that the model has as (inputs, outputs) of its transpose's codes."""
    outputs, groups = scales.shape
    shape = (groups * _GROUP, outputs)
    return Fp4Tensor(
        codes.file, codes.name.removesuffix(_CODES), "bfloat16", shape, codes.start, codes.end,
        turned=True, codes=codes, scales=scales, group=_GROUP,
    )  # fmt: skip


def _divides(whole: StoredTensor, experts: Experts, fused: Fused) -> bool:
    shape, parts = whole.shape, len(fused.roles)
    if isinstance(whole, PackedTensor) and not isinstance(whole, ScaledTensor):
        return False
    return len(shape) > 1 and shape[0] == experts.number and shape[1] % parts == 0


def _parts(
    whole: StoredTensor, experts: Experts, fused: Fused
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors in the order in which they lie in the file."""
    modules, start = dict(experts.projections), 0
    shape = (whole.shape[1] // len(fused.roles), *whole.shape[2:])
    for number in range(experts.number):
        for role in fused.roles:
            name = f"{modules[role].format(number)}.{fused.part}"
            yield name, _piece(whole, start, shape)
            start += shape[0]


def _piece(whole: StoredTensor, first: int, shape: tuple[int, ...]) -> StoredTensor:
    """Return rows of a stack of matrices, from one on that is counted through all of them."""
    if isinstance(whole, ScaledTensor):
        return whole.rows_from(first, shape)
    width = whole.nbytes // (whole.shape[0] * whole.shape[1])
    start = whole.start + first * width
    return replace(whole, shape=shape, start=start, end=start + shape[0] * width)
