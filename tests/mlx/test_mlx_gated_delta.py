"""The delta rule on MLX where its numbers are hard."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import torch
from recurrences import random_inputs, token_by_token

from edgetune.mixer import PIECE, GatedDelta
from edgetune_mlx.gated_delta import gated_delta


def test_equal_keys_that_nothing_decays_are_solved_for() -> None:
    """Powers of their system are larger than float32 holds; its inverse is not."""
    mixer = GatedDelta(key_heads=1, value_heads=1, key_dim=4, value_dim=4, taps=2, module="")
    inputs = random_inputs(mixer, ((PIECE,),))
    x = inputs[0][:, :1].expand(-1, PIECE, -1)
    b, a = torch.full((2, 1, PIECE, 1), 9.0, dtype=torch.float64) * torch.tensor(
        [[[[1]]], [[[-1]]]]
    )
    inputs = [each.detach() for each in (x, b, a, *inputs[3:])]
    expected = token_by_token(inputs, mixer, ((PIECE,),))
    arrays = [mx.array(each.float().numpy()) for each in inputs]

    found = gated_delta(*arrays[:3], arrays[3:], mixer, None)

    np.testing.assert_allclose(np.array(found), expected.numpy(), rtol=1e-4, atol=1e-4)
