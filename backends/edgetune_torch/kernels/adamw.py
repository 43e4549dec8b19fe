"""AdamW on a card: one launch for all tensors whose averages are in 8 bits, one for the others.

The kernels find the tensors by a table of addresses. Every program has some whole blocks of numbers,
and writes weights and averages in place: a launch is made or it is not, which is why what a card
loads for the first one is loaded by :func:`prepared`, before anything changes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from edgetune.settings.spec import ADAMW
from edgetune_torch import kernels
from edgetune_torch.dynamic_map import borders_on, table_on
from edgetune_torch.moments import BLOCK, ByteMoment

COUNT = 4
"""Blocks that a program updates."""

ENTRIES: tl.constexpr = tl.constexpr(8)
"""Numbers of a tensor in the table: six addresses, its size, and the number of its first block."""


@triton.jit
def _owners(table, number, tensors, steps: tl.constexpr):
    """Return the tensor that each block belongs to: the last one that begins at it or before."""
    found = number * 0
    for power in tl.static_range(steps):
        after = found + (1 << (steps - 1 - power))
        begins = tl.load(table + after * ENTRIES + 7, mask=after < tensors, other=0)
        found = tl.where((after < tensors) & (begins <= number), after, found)
    return found


@triton.jit
def _moved(mean, square, weight, grad, correction, decay, share, new1, beta2, new2, eps):
    """Return averages and weights after a step, rounded as the text rounds them.

    ``new1`` and ``new2`` are what beta1 and beta2 leave to the gradient.
    """
    mean = mean + (grad - mean) * new1
    square = square * beta2 + (grad * grad) * new2
    deviation = tl.div_rn(tl.sqrt_rn(square), correction) + eps
    return mean, square, weight * decay - share * tl.div_rn(mean, deviation)


@triton.jit
def _encoded(values, borders):
    """Return scales of blocks (N, B) and the codes of their values; see :mod:`dynamic_map`."""
    scale = tl.max(tl.abs(values), axis=1)
    unit = tl.div_rn(values, tl.maximum(scale, 1.2e-38)[:, None])  # the least normal float32
    code = (unit * 0.0).to(tl.int32)
    for power in tl.static_range(8):
        after = code + (128 >> power)
        code = tl.where(tl.load(borders + after - 1) < unit, after, code)
    return scale, code.to(tl.uint8)


@triton.jit(do_not_specialize=["blocks"])  # what a trial loads serves any number of them
def _update(
    table, factors, signed_map, signed_borders, map_, borders, blocks, tensors, correction, new1,
    beta2, new2, eps, narrow: tl.constexpr, steps: tl.constexpr, count: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64) * count + tl.arange(0, count)
    known = number < blocks
    owner = _owners(table, number, tensors, steps)
    entry = table + owner * ENTRIES
    local = number - tl.load(entry + 7)
    at = local[:, None] * block + tl.arange(0, block)[None, :]
    inside = known[:, None] & (at < tl.load(entry + 6)[:, None])
    weights = tl.load(entry).to(tl.pointer_type(tl.float32))[:, None] + at
    grads = tl.load(entry + 1).to(tl.pointer_type(tl.float32))[:, None] + at
    decay, share = tl.load(factors + owner * 2)[:, None], tl.load(factors + owner * 2 + 1)[:, None]
    grad = tl.load(grads, mask=inside, other=0.0)
    weight = tl.load(weights, mask=inside, other=0.0)
    if narrow:
        first = tl.load(entry + 2).to(tl.pointer_type(tl.uint8))[:, None] + at
        second = tl.load(entry + 3).to(tl.pointer_type(tl.uint8))[:, None] + at
        first_scales = tl.load(entry + 4).to(tl.pointer_type(tl.float32)) + local
        second_scales = tl.load(entry + 5).to(tl.pointer_type(tl.float32)) + local
        mean = tl.load(signed_map + tl.load(first, mask=inside, other=0).to(tl.int32))
        square = tl.load(map_ + tl.load(second, mask=inside, other=0).to(tl.int32))
        mean = mean * tl.load(first_scales, mask=known, other=0.0)[:, None]
        square = square * tl.load(second_scales, mask=known, other=0.0)[:, None]
        mean, square = tl.where(inside, mean, 0.0), tl.where(inside, square, 0.0)
        mean, square, weight = _moved(
            mean, square, weight, grad, correction, decay, share, new1, beta2, new2, eps
        )
        scale, code = _encoded(mean, signed_borders)
        tl.store(first, code, mask=inside)
        tl.store(first_scales, scale, mask=known)
        scale, code = _encoded(square, borders)
        tl.store(second, code, mask=inside)
        tl.store(second_scales, scale, mask=known)
    else:
        first = tl.load(entry + 2).to(tl.pointer_type(tl.float32))[:, None] + at
        second = tl.load(entry + 3).to(tl.pointer_type(tl.float32))[:, None] + at
        mean = tl.load(first, mask=inside, other=0.0)
        square = tl.load(second, mask=inside, other=0.0)
        mean, square, weight = _moved(
            mean, square, weight, grad, correction, decay, share, new1, beta2, new2, eps
        )
        tl.store(first, mean, mask=inside)
        tl.store(second, square, mask=inside)
    tl.store(weights, weight, mask=inside)


def prepared(updates: Sequence[Any]) -> list[Callable[[], None]]:
    """Return the launches that make :class:`edgetune_torch.optimizer.TensorUpdate` objects true.

    All that they take is allocated and loaded then; nothing has changed.
    """
    kinds = [
        [u for u in updates if isinstance(u.first, ByteMoment) is narrow]
        for narrow in (True, False)
    ]
    launches = [_prepared(some) for some in kinds if some]
    for launch in launches:
        launch(0)
    return [partial(launch, None) for launch in launches]


def _prepared(updates: Sequence[Any]) -> Callable[[int | None], None]:
    """Return what updates tensors of one kind; it takes the number of blocks, None for all."""
    device, narrow = updates[0].weight.device, isinstance(updates[0].first, ByteMoment)
    rows, begins = [], 0
    for update in updates:
        size = len(update.weight)
        parts = [*update.first.parts().values(), *update.second.parts().values()]
        order = (0, 2, 1, 3) if narrow else (0, 1, 0, 1)  # codes, then scales
        moments = [parts[i].data_ptr() for i in order]
        rows.append([update.weight.data_ptr(), update.grad.data_ptr(), *moments, size, begins])
        begins += -(-size // BLOCK)
    table = torch.tensor(rows, dtype=torch.int64, device=device)
    numbers = [(update.factors.decay, update.factors.share) for update in updates]
    factors = torch.tensor(numbers, dtype=torch.float32, device=device)
    maps = [find(signed, device) for signed in (True, False) for find in (table_on, borders_on)]
    steps = max(1, (len(rows) - 1).bit_length())
    correction = updates[0].factors.correction

    def launch(blocks: int | None) -> None:
        count = begins if blocks is None else blocks
        kernels.launch(
            _update, (max(1, -(-count // COUNT)),), table, factors, *maps, count, len(rows),
            correction, 1 - ADAMW.beta1, ADAMW.beta2, 1 - ADAMW.beta2, ADAMW.eps, narrow=narrow, steps=steps,
            count=COUNT, block=BLOCK,
        )  # fmt: skip

    return launch
