"""Mamba-2's mixer on MLX is the plain recurrence, and so is its way back."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from recurrences import Documents, apart, random_scan_inputs, scanned_by_token, under_loss
from torch import Tensor

from edgetune.mixer import PIECE, StateSpace
from edgetune_mlx.state_space import state_space

CLOSE = 2e-5
"""Of what float32 leaves of numbers, for the largest of them."""

CASES: dict[str, tuple[StateSpace, Documents]] = {
    "pieces and a rest": (
        StateSpace(heads=4, groups=2, value_dim=3, key_dim=5, taps=4, module=""),
        ((2 * PIECE + 9,), (PIECE + 30,)),
    ),
    "packed": (
        StateSpace(
            heads=2, groups=1, value_dim=4, key_dim=6, taps=3, module="", least_step=0.4,
            most_step=1.5,
        ),
        ((5, 70, 56), (64, 1, 66)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_pieces_are_the_recurrence_and_so_is_their_way_back(case: str) -> None:
    mixer, documents = CASES[case]
    inputs = [x.detach().float().double() for x in random_scan_inputs(mixer, documents)]
    inputs, wanted = [x.requires_grad_() for x in inputs], under_loss(documents)
    expected = scanned_by_token(inputs, mixer, documents)
    weights = torch.randn_like(expected) * wanted
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    arrays, under = [_array(each) for each in inputs], _array(weights)
    numbers = _numbers(documents) if max(map(len, documents)) > 1 else None

    def loss(*given: Any) -> Any:
        return (state_space(given[0], given[1], given[2:], mixer, numbers) * under).sum()

    found = state_space(arrays[0], arrays[1], arrays[2:], mixer, numbers)
    ours = mx.grad(loss, argnums=list(range(len(arrays))))(*arrays)

    assert apart(_tensor(found) * wanted, expected * wanted) < CLOSE
    for own, other in zip(ours, theirs, strict=True):
        assert apart(_tensor(own), other) < CLOSE


def _numbers(documents: Documents) -> mx.array:
    rows = [[n for n, length in enumerate(row) for _ in range(length)] for row in documents]
    most = max(map(len, rows))
    return mx.array([row + [row[-1]] * (most - len(row)) for row in rows])


def _array(x: Tensor) -> mx.array:
    return mx.array(x.detach().float().numpy())


def _tensor(x: mx.array) -> Tensor:
    return torch.from_numpy(np.array(x)).double()
