"""The gradients of a step, summed over the ranks of a world."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from edgetune.world import World

Gradients = dict[str, mx.array]
"""Gradients by the names of their tensors."""


def added(grads: Gradients, found: Gradients) -> Gradients:
    """Add what was found and return the sums that it changed."""
    for name, grad in found.items():
        grads[name] = grads[name] + grad if name in grads else grad
    return {name: grads[name] for name in found}


def set_aside(grads: Gradients) -> Gradients:
    """Return what was added up so far, and begin anew."""
    held = dict(grads)
    grads.clear()
    return held


def add_back(grads: Gradients, held: Gradients) -> None:
    """Add what was set aside, which is used up."""
    for name in list(held):
        grad = held.pop(name)
        grads[name] = grad + grads[name] if name in grads else grad
        mx.eval(grads[name])


def add_up(grads: Gradients, trained: Mapping[str, mx.array], world: World) -> None:
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
