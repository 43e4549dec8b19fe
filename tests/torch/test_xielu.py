"""xIELU (Apertus): rounded once in 16 bits, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune_torch.linear import ROWS
from edgetune_torch.xielu import xielu

NUMBERS = {
    "alpha_p": torch.tensor([0.3]), "alpha_n": torch.tensor([-0.6]), "beta": torch.tensor(0.5),
    "eps": torch.tensor(-1e-6),
}  # fmt: skip


def _plain(x: Tensor) -> Tensor:
    """The formula of the paper in float64, by torch's own way back."""
    alpha_p, alpha_n, beta, eps = (NUMBERS[name].double() for name in NUMBERS)
    alpha_p, alpha_n = F.softplus(alpha_p), beta + F.softplus(alpha_n)
    below = (torch.expm1(torch.min(x, eps)) - x) * alpha_n + beta * x
    return torch.where(x > 0, alpha_p * x * x + beta * x, below)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_activation_and_its_gradient_are_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (2 * torch.randn(2, ROWS, 5)).to(dtype).requires_grad_()
    grad = torch.randn(x.shape).to(dtype)
    exact = x.detach().double().requires_grad_()
    expected = _plain(exact)
    expected.backward(grad.double())

    found = xielu(x, NUMBERS)
    found.backward(grad)

    near = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=1e-6)
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=near, atol=1e-6)
