"""Several streams, of which blocks compute one (see :mod:`edgetune.altup`), and Gemma 3n's sparsity.

T tokens, N streams of D numbers. Computed in float32, some tokens at a time, and rounded once; what is
saved is what came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgetune_torch.linear import ROWS, multiplied, multiplied_back
from edgetune_torch.matrices import Matrix

LEAST = 1e-5
"""Mean squares below this count as this much."""
FLAT = 1e-15
"""The least deviation: what does not vary at all, as of a token that is nothing, has a slope, too."""


class Predicted(torch.autograd.Function):
    """``p_j = h_j + sum_i C[j, i] h_i``, C made by a router."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, routed: Tensor, router: Tensor, mixing: Tensor) -> Tensor:
        """Return streams of x (..., N D) for routed (..., D), router (N, D), mixing (N N, N)."""
        ctx.save_for_backward(x, routed, router, mixing)
        out = torch.empty_like(x)
        for h, r, p in zip(
            _streams(x, router), _pieces(routed), _streams(out, router), strict=True
        ):
            coefficients = _square(_shares(r, router) @ mixing.float().T, len(router))
            wide = h.float()
            p.copy_(torch.baddbmm(wide, coefficients, wide))
            del wide
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of what was routed."""
        x, routed, router, mixing = ctx.saved_tensors
        x_grad, routed_grad = torch.empty_like(x), torch.empty_like(routed)
        each = (_streams(x, router), _pieces(routed), _streams(grads[0].contiguous(), router),
                _streams(x_grad, router), _pieces(routed_grad))  # fmt: skip
        for h, r, g, own, back in zip(*each, strict=True):
            shares, wide = _shares(r, router), g.float()
            coefficients = _square(shares @ mixing.float().T, len(router))
            own.copy_(torch.baddbmm(wide, coefficients.transpose(1, 2), wide))
            found = torch.bmm(wide, h.float().transpose(1, 2)).flatten(1)
            del wide
            back.copy_(_shares_back(found @ mixing.float(), shares, router))
        return x_grad, routed_grad, None, None


class Corrected(torch.autograd.Function):
    """``k_j = p_j + c_j (made - p_a)``, c made by a router."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, made: Tensor, routed: Tensor, router: Tensor, weight: Tensor,
        active: int,
    ) -> Tensor:  # fmt: skip
        """Return streams of x (..., N D) for made and routed (..., D), weight (N, N)."""
        ctx.save_for_backward(x, made, routed, router, weight)
        ctx.active = active
        out = torch.empty_like(x)
        each = (_streams(x, router), _pieces(made), _pieces(routed), _streams(out, router))
        for p, a, r, k in zip(*each, strict=True):
            shares = _shares(r, router) @ weight.float().T + 1
            ahead = a.float() - p[:, active].float()
            k.copy_(torch.addcmul(p.float(), shares[..., None], ahead[:, None]))
            del ahead
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of what was made and of what was routed."""
        x, made, routed, router, weight = ctx.saved_tensors
        active = ctx.active
        x_grad, made_grad = torch.empty_like(x), torch.empty_like(made)
        routed_grad = torch.empty_like(routed)
        each = (_streams(x, router), _pieces(made), _pieces(routed),
                _streams(grads[0].contiguous(), router), _streams(x_grad, router), _pieces(made_grad),
                _pieces(routed_grad))  # fmt: skip
        for p, a, r, g, own, back, routed_back in zip(*each, strict=True):
            shares, wide = _shares(r, router), g.float()
            factors = shares @ weight.float().T + 1
            ahead_grad = torch.bmm(factors[:, None], wide)[:, 0]
            back.copy_(ahead_grad)
            ahead = a.float() - p[:, active].float()
            found = torch.bmm(wide, ahead[..., None])[..., 0]
            wide = wide.clone() if wide is g else wide
            wide[:, active] -= ahead_grad
            own.copy_(wide)
            del wide, ahead, ahead_grad
            routed_back.copy_(_shares_back(found @ weight.float(), shares, router))
        return x_grad, made_grad, routed_grad, None, None, None


class AddedBehind(torch.autograd.Function):
    """y added to all streams but the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """Return streams x (..., N D) with y (..., D)."""
        ctx.size = y.shape[-1]
        out = x.clone()
        behind = out.view(-1, x.shape[-1] // ctx.size, ctx.size)[:, 1:]
        behind += y.reshape(-1, 1, ctx.size)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x, which passes, and of y."""
        (grad,) = grads
        behind = _apart(grad, grad.shape[-1] // ctx.size)[..., 1:, :]
        return grad, behind.sum(-2)


class Above(torch.autograd.Function):
    """``max(x - (mean + k std), 0)`` over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, deviations: float) -> Tensor:
        """Return what of x (..., F) is above."""
        ctx.save_for_backward(x)
        ctx.deviations = deviations
        out = torch.empty_like(x)
        for part, result in zip(_pieces(x), _pieces(out), strict=True):
            wide = part.float()
            std, mean = torch.std_mean(wide, -1, keepdim=True, correction=0)
            result.copy_((wide - (mean + std * deviations)).relu_())
            del wide
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x."""
        (x,), k = ctx.saved_tensors, ctx.deviations
        out = torch.empty_like(x)
        for part, grad, result in zip(_pieces(x), _pieces(grads[0]), _pieces(out), strict=True):
            wide = part.float()
            std, mean = torch.std_mean(wide, -1, keepdim=True, correction=0)
            passed = grad.float() * (wide > mean + std * k)
            lost = passed.sum(-1, keepdim=True) / wide.shape[-1]
            apart = (wide - mean) * (k / std.clamp(min=FLAT))
            result.copy_(passed.sub_(apart.add_(1).mul_(lost)))
            del wide, passed, apart
        return out, None


def parted(x: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    """Return x (..., D) and its projections, brought to its magnitude, side by side (..., N D).

    Without a way back: what is trained at the input has none here.
    """
    count = len(matrices) + 1
    out = x.new_empty(*x.shape[:-1], count * x.shape[-1])
    for part, streams in zip(_pieces(x), _pieces(out), strict=True):
        first, *others = _apart(streams, count).unbind(-2)
        first.copy_(part)
        size = _magnitude(part.float())
        for other, matrix in zip(others, matrices, strict=True):
            other.copy_(_as_large(multiplied(part, matrix, None), size))
    return out


class Joined(torch.autograd.Function):
    """The mean of streams, of which all but the first are projected and as large as that one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *matrices: Matrix) -> Tensor:
        """Return the mean (..., D) of streams x (..., N D)."""
        ctx.save_for_backward(x)
        ctx.matrices, count = matrices, len(matrices) + 1
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // count)
        for part, mean in zip(_pieces(x), _pieces(out), strict=True):
            first, *others = _apart(part, count).unbind(-2)
            total = first.float()
            size = _magnitude(total)
            for other, matrix in zip(others, matrices, strict=True):
                total = total + _as_large(multiplied(other, matrix, None), size)
            mean.copy_(total / count)
            del total
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the streams."""
        (x,), matrices = ctx.saved_tensors, ctx.matrices
        out = torch.empty_like(x)
        for part, grad, back in zip(_pieces(x), _pieces(grads[0]), _pieces(out), strict=True):
            _joined_back(part, grad.float() / (len(matrices) + 1), back, matrices)
        return out, *(None for _ in matrices)


def _joined_back(x: Tensor, grad: Tensor, out: Tensor, matrices: Sequence[Matrix]) -> None:
    """Write the gradient (T, N D) of streams x for that of each (T, D) of the projected ones."""
    first, *others = _apart(x, len(matrices) + 1).unbind(-2)
    own, *backs = _apart(out, len(matrices) + 1).unbind(-2)
    wide = first.float()
    size = _magnitude(wide)
    size_grad = torch.zeros_like(size)
    for other, matrix, back in zip(others, matrices, backs, strict=True):
        y = multiplied(other, matrix, None).float()
        squares = _mean_square(y)
        inverse = squares.clamp(min=LEAST).rsqrt()
        along = (grad * y).sum(-1, keepdim=True) * inverse
        size_grad += along
        shrunk = along * size * inverse.square() * (squares > LEAST) / y.shape[-1]
        y_grad = y.mul_(-shrunk).addcmul_(grad, size * inverse)
        back.copy_(multiplied_back(y_grad.to(x.dtype), matrix))
        del y, y_grad
    own.copy_(grad.addcmul_(wide, size_grad / (size * wide.shape[-1])))


def joined(x: Tensor, matrices: Sequence[Matrix]) -> Tensor:
    """Return the mean (..., D) of streams (..., N D), projected and brought to the first's magnitude."""
    y: Tensor = Joined.apply(x, *matrices)  # type: ignore[no-untyped-call]
    return y


def _apart(x: Tensor, count: int) -> Tensor:
    """Return streams (..., N D) with an axis of their own (..., N, D)."""
    return x.reshape(*x.shape[:-1], count, -1)


def _as_large(x: Tensor, size: Tensor) -> Tensor:
    wide = x.float()
    return wide * (size / _mean_square(wide).clamp(min=LEAST).sqrt())


def _magnitude(x: Tensor) -> Tensor:
    return _mean_square(x).sqrt().clamp(min=FLAT)


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True)


def _shares(routed: Tensor, router: Tensor) -> Tensor:
    """Return what the router says (T, N) of some tokens (T, D)."""
    return torch.tanh(routed.float() @ router.float().T / router.shape[1])


def _shares_back(grad: Tensor, shares: Tensor, router: Tensor) -> Tensor:
    """Return the gradient (T, D) of what was routed for that of the router's shares (T, N)."""
    return (grad * (1 - shares.square())) @ router.float() / router.shape[1]


def _square(coefficients: Tensor, count: int) -> Tensor:
    return coefficients.view(-1, count, count)


def _streams(x: Tensor, router: Tensor) -> tuple[Tensor, ...]:
    """Return x by some tokens at a time, their streams apart (tokens, N, D)."""
    return torch.split(x.view(-1, *router.shape), ROWS)


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    return torch.split(x.reshape(-1, x.shape[-1]), ROWS)
