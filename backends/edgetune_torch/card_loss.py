"""Cross entropy on a card: the logits of a chunk at once, which a kernel turns into their gradient.

C loss tokens of a chunk, D hidden size, V vocabulary. The logits (C, V) are in the type of products,
half as wide as the float32 tiles of :mod:`edgetune_torch.loss`, and no second copy is made of them.
A head in another format is unpacked slice by slice for either product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune_torch.kernels.loss import Finish, cross_entropy
from edgetune_torch.loss import Head, Sums


def loss_and_gradient(
    x: Tensor, targets: Tensor, count: int, head: Head, scale: float | Tensor
) -> tuple[Sums, Tensor]:
    """Do what :func:`edgetune_torch.loss.loss_and_gradient` does."""
    if isinstance(scale, float):
        factors = torch.full((len(x),), scale, device=x.device)
    else:
        factors = scale.float().clone()
    factors[count:] = 0
    logits = _products(x, head)
    sums = _sums(*cross_entropy(logits, targets, _finish(head), factors), count)
    return sums, _gradient(logits, x, count, head)


def loss_only(x: Tensor, targets: Tensor, count: int, head: Head) -> Sums:
    """Return the summed loss of the first rows of a chunk x (C, D)."""
    return _sums(*cross_entropy(_products(x, head), targets, _finish(head)), count)


def token_losses(x: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Return the loss of every row of a chunk x (C, D), float32 (C,)."""
    losses, _ = cross_entropy(_products(x, head), targets, _finish(head))
    return losses


def _finish(head: Head) -> Finish:
    return Finish(bias=head.bias, scale=head.scale, softcap=head.softcap)


def _products(x: Tensor, head: Head) -> Tensor:
    """Return what the head's product gives (C, V), before anything is done to it."""
    head.rows.workspace.check()
    out = torch.empty(len(x), head.rows.vocabulary, dtype=x.dtype, device=x.device)
    for span, rows in head.rows.slices(x.dtype):
        torch.mm(x, rows.T, out=out[:, span])
        del rows
    return out


def _gradient(logits: Tensor, x: Tensor, count: int, head: Head) -> Tensor:
    """Return the gradient (C, D) of the hidden states x of that of their logits (C, V).

    A head that is trained is given its own, by the first ``count`` rows.
    """
    total: Tensor | None = None
    for span, rows in head.rows.slices(x.dtype):
        part = logits[:, span]
        head.rows.learn(span, part[:count], x[:count])
        grad = part @ rows
        if span == slice(0, head.rows.vocabulary):
            return grad
        total = grad.float() if total is None else total.add_(grad)
        del rows, part, grad
    assert total is not None
    return total.to(x.dtype)


def _sums(losses: Tensor, hits: Tensor, count: int) -> Sums:
    return Sums(
        loss=float(losses[:count].sum(dtype=torch.float64)),
        tokens=count,
        correct=int(hits[:count].sum()),
    )
