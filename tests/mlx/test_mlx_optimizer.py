"""An update in place is the update that MLX makes, bit for bit, and it is made when MLX cannot."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.faults_mlx import Fault

from edgetune_mlx.optimizer import CHUNK, AdamW

SIZES = {"small": (3, 5), "large": (30, CHUNK // 10 + 7), "strided": (40, 30)}


def _trained() -> tuple[AdamW, dict[str, mx.array]]:
    """Return tensors and their optimizer after a step."""
    draw = np.random.default_rng(0)
    tensors = {name: mx.array(draw.standard_normal(x, np.float32)) for name, x in SIZES.items()}
    sizes = {name: x.size for name, x in tensors.items()}
    optimizer = AdamW(sizes, dict.fromkeys(SIZES, 1.0), 0.1)
    _update(optimizer, tensors, _grads(1), 0.37, 1e-2, 1)
    return optimizer, tensors


def _update(
    optimizer: AdamW, tensors: dict[str, mx.array], grads: dict[str, mx.array], *numbers: Any
) -> None:
    optimizer.update(tensors.__getitem__, tensors.__setitem__, grads, *numbers)


def _grads(seed: int) -> dict[str, mx.array]:
    draw = np.random.default_rng(seed)
    grads = {name: mx.array(draw.standard_normal(x, np.float32)) for name, x in SIZES.items()}
    grads["strided"] = mx.array(np.array(grads["strided"]).T).T
    mx.eval(grads)
    return grads


def _numbers(optimizer: AdamW, tensors: dict[str, mx.array]) -> dict[str, bytes]:
    found = {**optimizer.state(), **{name: np.array(x) for name, x in tensors.items()}}
    return {name: x.tobytes() for name, x in found.items()}


@pytest.mark.parametrize("clip", [0.37, 1.0])
def test_what_mlx_cannot_make_any_more_is_computed_in_place(clip: float) -> None:
    (optimizer, tensors), grads = _trained(), _grads(2)
    with Fault(0) as requests:
        _update(optimizer, tensors, grads, clip, 1e-2, 2)
    expected = _numbers(optimizer, tensors)
    undone, finished = [], []
    for point in range(1, requests.count + 1):
        (optimizer, tensors), grads = _trained(), _grads(2)
        before = _numbers(optimizer, tensors)
        try:
            with Fault(point, sticky=True):
                _update(optimizer, tensors, grads, clip, 1e-2, 2)
        except (MemoryError, RuntimeError):
            assert _numbers(optimizer, tensors) == before
            undone.append(point)
        else:
            assert _numbers(optimizer, tensors) == expected
            finished.append(point)
        assert not optimizer.torn

    assert 0 < undone[-1] < finished[0]
    assert len(finished) > len(undone)  # of three tensors the largest alone can be undone
