"""The gradients of a step, summed over the ranks of a world."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from edgetune.world import World


def set_aside(grads: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return what was added up so far, and begin anew."""
    held = dict(grads)
    grads.clear()
    return held


def add_back(grads: dict[str, mx.array], held: dict[str, mx.array]) -> None:
    """Add what was set aside, which is used up."""
    for name in list(held):
        grad = held.pop(name)
        grads[name] = grad + grads[name] if name in grads else grad
        mx.eval(grads[name])


def add_up(grads: dict[str, mx.array], trained: Mapping[str, mx.array], world: World) -> None:
    """Replace the gradients of this rank, which may have none, by their sums over all ranks."""
    if world.size == 1:
        return
    names = sorted(trained)
    flat = np.concatenate(
        [
            np.array(grads[name], np.float32).ravel()
            if name in grads
            else np.zeros(trained[name].size, np.float32)
            for name in names
        ]
    )
    world.add(flat)
    start = 0
    for name in names:
        tensor = trained[name]
        grads[name] = mx.array(flat[start : start + tensor.size]).reshape(tensor.shape)
        start += tensor.size
