"""Mixers that carry a state, on MLX: in pieces they are the plain recurrence, and so back."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from recurrences import CASES, Documents, apart, random_inputs, token_by_token, under_loss
from torch import Tensor

from edgetune.mixer import PIECE
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune_mlx.mixers import mixed

CLOSE = 1e-4
"""Of what float32 leaves of numbers, for the largest of them."""


@pytest.mark.parametrize("case", CASES)
def test_pieces_are_the_recurrence_and_so_is_their_way_back(case: str) -> None:
    mixer, documents = CASES[case]
    inputs, own = random_inputs(mixer, documents)
    given = [x.detach().float().double().requires_grad_() for x in (*inputs, *own.values())]
    inputs, wanted = given[: len(inputs)], under_loss(documents)
    own = dict(zip(own, given[len(inputs) :], strict=True))
    expected = token_by_token(mixer, inputs, own, documents)
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(expected.shape, dtype=expected.dtype, generator=draw) * wanted
    theirs = torch.autograd.grad((expected * weights).sum(), given)
    arrays, under = [_array(each) for each in given], _array(weights)
    numbers = _numbers(documents) if max(map(len, documents)) > 1 else None

    def output(*given: Any) -> Any:
        parts, tensors = given[: len(inputs)], dict(zip(own, given[len(inputs) :], strict=True))
        return mixed(mixer)(mixer, parts, tensors, numbers)

    def loss(*given: Any) -> Any:
        return (output(*given) * under).sum()

    ours = mx.grad(lambda given: loss(*given))(arrays)

    assert apart(_tensor(output(*arrays)) * wanted, expected * wanted) < CLOSE
    for one, other in zip(ours, theirs, strict=True):
        assert apart(_tensor(one), other) < CLOSE


def test_equal_keys_that_nothing_decays_are_solved_for() -> None:
    """Powers of their system are larger than float32 holds; its inverse is not."""
    mixer = GatedDelta(key_heads=1, value_heads=1, key_dim=4, value_dim=4, taps=2, module="")
    (x, _, _), own = random_inputs(mixer, ((PIECE,),))
    full = torch.full((1, PIECE, 1), 9.0, dtype=torch.float64)
    inputs = [x[:, :1].expand(-1, PIECE, -1).detach(), full, -full]
    own = {role: tensor.detach() for role, tensor in own.items()}
    expected = token_by_token(mixer, inputs, own, ((PIECE,),))
    arrays = {role: _array(tensor) for role, tensor in own.items()}

    found = mixed(mixer)(mixer, [_array(each) for each in inputs], arrays, None)

    np.testing.assert_allclose(np.array(found), expected.numpy(), rtol=1e-4, atol=1e-4)


def _numbers(documents: Documents) -> mx.array:
    rows = [[n for n, length in enumerate(row) for _ in range(length)] for row in documents]
    most = max(map(len, rows))
    return mx.array([row + [row[-1]] * (most - len(row)) for row in rows])


def _array(x: Tensor) -> mx.array:
    return mx.array(x.detach().float().numpy())


def _tensor(x: mx.array) -> Tensor:
    return torch.from_numpy(np.array(x)).double()
