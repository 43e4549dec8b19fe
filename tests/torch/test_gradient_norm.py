"""The norm of many gradients, against a sum in float64, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgetune_torch.gradients import PIECE, Gradients, global_norm

MANY = 30_000_000


def in_float64(flat: Tensor) -> float:
    return sum(float(part.double().square().sum()) for part in flat.split(1 << 20)) ** 0.5


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes, views not counted."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known, self.most = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() != self.known:
                self.most = max(self.most, made.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("count", [1, PIECE - 1, PIECE, PIECE + 1, MANY])
def test_the_norm_is_that_of_a_sum_in_float64(count: int) -> None:
    flat = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 1e-3
    with Largest(flat) as made:
        norm = global_norm(flat)
    assert float(norm) == pytest.approx(in_float64(flat), rel=1e-6)
    assert made.most <= 2 * 8 * (count / PIECE + PIECE)


def test_gradients_are_scaled_down_to_the_norm() -> None:
    parameters = {name: torch.zeros(shape) for name, shape in {"a": (700, 900), "b": (5,)}.items()}
    gradients = Gradients(parameters)
    gradients.flat.copy_(torch.randn(len(gradients.flat)))
    before = gradients.flat.clone()
    found = gradients.clip(2.0)
    assert found == pytest.approx(in_float64(before), rel=1e-6)
    assert in_float64(gradients.flat) == pytest.approx(2.0, rel=1e-5)
    again = gradients.flat.clone()
    assert gradients.clip(3.0) == pytest.approx(2.0, rel=1e-5)
    assert torch.equal(gradients.flat, again)


def test_what_is_not_finite_has_no_finite_norm() -> None:
    for bad in (float("nan"), float("inf")):
        assert not torch.isfinite(global_norm(torch.tensor([1.0, bad])))
