"""Gemma 3n's sparse gate lets through what is above a bound that is not rounded."""

from __future__ import annotations

from statistics import NormalDist

import torch

from edgetune_torch.altup import Above


def test_the_bound_is_exact_in_bfloat16() -> None:
    deviations = NormalDist().inv_cdf(0.95)
    x = torch.randn(4, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = Above.apply(x, deviations).double()

    torch.testing.assert_close(found, _above(x, deviations), atol=1e-5, rtol=2**-8)
    rounded = float(torch.tensor(deviations).bfloat16())
    assert (found - _above(x, rounded)).abs().max() > 3e-3


def _above(x: torch.Tensor, deviations: float) -> torch.Tensor:
    wide = x.double()
    std, mean = torch.std_mean(wide, -1, keepdim=True, correction=0)
    return (wide - mean - deviations * std).relu()
