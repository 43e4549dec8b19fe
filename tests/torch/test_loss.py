"""The loss in one walk over the head, and in two for one that is trained, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from edgetune_torch.cpu_kernels import loss as kernel
from edgetune_torch.loss import Head, loss_and_gradient
from edgetune_torch.row_formats import PlainRows
from edgetune_torch.vocabulary import ResidentHead
from edgetune_torch.workspace import Workspace

STATES, SIZE = 37, 48
FINISHES: dict[str, tuple[bool, float, float | None]] = {
    "plain": (False, 1.0, None), "bias": (True, 1.0, None), "scale": (False, 0.3, None),
    "softcap": (False, 1.0, 4.0), "all": (True, 0.5, 3.0),
}  # fmt: skip
"""Whether a head has a bias, its scale, its cap."""


def _head(weight: Tensor, finish: str, *, learns: bool) -> Head:
    biased, scale, softcap = FINISHES[finish]
    space, size = Workspace(torch.device("cpu")), (len(weight), SIZE)
    rows = ResidentHead(weight, PlainRows(SIZE, weight.dtype), size, space, shared=False)
    rows.learns = learns
    bias = torch.linspace(-1, 1, len(weight)) if biased else None
    return Head(rows=rows, bias=bias, scale=scale, softcap=softcap)


def _told(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    head: Head,
    factors: Tensor,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Return torch's losses of x (C, D) and their gradient weighed by ``factors`` (C,)."""
    wide = x.to(dtype, copy=True).requires_grad_()
    logits = wide @ weight.to(dtype).T
    if head.bias is not None:
        logits = logits + head.bias.to(dtype)
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    losses = cross_entropy(logits, targets.long(), reduction="none")
    (grad,) = torch.autograd.grad((losses * factors.to(dtype)).sum(), wide)
    return losses.detach(), grad


def _drawn(vocabulary: int, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return states, a head whose rows grow (1), shrink (-1) or neither (0), and targets."""
    draw = torch.Generator().manual_seed(vocabulary)
    growth = torch.linspace(0.05, 1.5, vocabulary)[:, None] if order else torch.ones(1)
    weight = torch.randn(vocabulary, SIZE, generator=draw) * growth
    x = torch.randn(STATES, SIZE, generator=draw)
    return x, weight.flip(0) if order < 0 else weight, torch.randint(vocabulary, (STATES,))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("order", [0, 1, -1])
@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("vocabulary", [40, 2048, 5003])
def test_loss_and_gradient_are_those_of_float64(
    vocabulary: int, finish: str, order: int, learns: bool
) -> None:
    x, weight, targets = _drawn(vocabulary, order)
    head, count = _head(weight, finish, learns=learns), STATES - 3
    uneven = torch.rand(STATES, generator=torch.Generator().manual_seed(1))
    for scale in (0.25, uneven):
        factors = torch.as_tensor(scale).expand(STATES).clone()
        factors[count:] = 0
        losses, grad = _told(x, weight, targets, head, factors)
        sums, found = loss_and_gradient(x, targets, count, head, scale=scale)
        assert sums.loss == pytest.approx(float(losses[:count].sum()), rel=1e-6)
        assert sums.tokens == count
        _, narrow = _told(x, weight, targets, head, factors, torch.float32)
        least = 1e-6 * float(grad.norm())
        assert float((found - grad).norm()) <= max(least, 2 * float((narrow - grad).norm()))
        assert not found[count:].any()


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_what_a_sure_answer_learns_is_not_lost_in_16_bits(
    learns: bool, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where p is 0.999 the slope p - 1 is a thousandth of the weights that it is made of."""
    if not kernels:
        monkeypatch.setattr(kernel, "served", lambda _: False)
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5003, SIZE, generator=draw).mul_(0.05).bfloat16()
    targets = torch.randint(5003, (STATES,), generator=draw)
    weight[targets] = torch.randn(STATES, SIZE, generator=draw).bfloat16()
    x = (weight[targets].float() * 0.3).bfloat16()
    head = _head(weight, "plain", learns=learns)
    losses, grad = _told(x, weight, targets, head, torch.ones(STATES))
    assert 1e-4 < float(losses.median()) < 0.1
    sums, found = loss_and_gradient(x, targets, STATES, head, scale=1.0)
    assert sums.loss == pytest.approx(float(losses.sum()), rel=0.02)
    apart = (found.double() - grad).norm(dim=1) / grad.norm(dim=1)
    assert float(apart.median()) <= 0.03
