"""Attention of some queries to one piece of keys: by a kernel, or by scores that are made.

Both give an output and its log-sum-exp, which pieces are put together by; on the way back both are
those of all pieces, which makes a piece's gradients those of the whole.

H heads, G key/value heads, n queries, h channels of a head, R = H/G n queries that share a
key/value head, K keys of the piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from edgetune.shape import Attention


@dataclass(frozen=True, slots=True)
class Sight:
    """At which positions queries are, and from which position on keys are to them.

    ``causal``: these are the queries' own keys, of which each sees those before it.
    """

    queries: range
    keys: int
    causal: bool


def kernel(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp of a piece, both float32."""
    if q.device.type == "cpu":
        found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
        return found
    out, log_sum, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, 0.0, causal, scale=scale
    )
    return out.float(), log_sum


def kernel_back(
    grad: Tensor, inputs: tuple[Tensor, Tensor, Tensor], found: tuple[Tensor, Tensor],
    scale: float, *, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v of a piece; ``found`` is of all pieces."""
    aten, (q, k, _) = torch.ops.aten, inputs
    if q.device.type == "cpu":
        parts: tuple[Tensor, Tensor, Tensor]
        parts = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, *inputs, *found, 0.0, causal, scale=scale
        )
        return parts
    unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # seeds of a dropout
    q_grad, k_grad, v_grad = aten._scaled_dot_product_flash_attention_backward(
        grad, *inputs, *found, None, None, q.shape[2], k.shape[2], 0.0, causal, unused, unused,
        scale=scale,
    )  # fmt: skip
    return q_grad.float(), k_grad, v_grad


def scored(q: Tensor, k: Tensor, v: Tensor, rule: Attention, sight: Sight) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp of a piece, both float32; a query may see nothing of it."""
    scores, _ = _scores(q, k, rule, sight, slope=False)
    highest = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(torch.float32).min)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True)
    out = (weights.to(q.dtype) @ v).float().div_(total.clamp_min(1e-30))
    return out.view(q.shape), highest.add_(total.log_()).view(q.shape[:3])


def scored_back(
    grad: Tensor, inputs: tuple[Tensor, Tensor, Tensor], found: tuple[Tensor, Tensor],
    rule: Attention, sight: Sight,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v of a piece; ``found`` is of all pieces."""
    (q, k, v), (out, log_sum), heads = inputs, found, inputs[1].shape[1]
    scores, steepness = _scores(q, k, rule, sight, slope=True)
    by_query = _grouped(grad, heads)
    weights = scores.sub_(log_sum.reshape(*scores.shape[:3], 1)).exp_()
    v_grad = weights.to(q.dtype).transpose(-1, -2) @ by_query
    going = (by_query @ v.transpose(-1, -2)).float()
    going -= _grouped(grad.float() * out, heads).sum(-1, keepdim=True)
    going *= weights
    del weights, scores
    if steepness is not None:
        going *= steepness
    going = going.mul_(rule.scale).to(q.dtype)
    k_grad = going.transpose(-1, -2) @ _grouped(q, heads)
    return (going @ k).float().view(q.shape), k_grad, v_grad


def _scores(
    q: Tensor, k: Tensor, rule: Attention, sight: Sight, *, slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the scores (1, G, R, K), -inf where a query does not see a key.

    With them comes the ``slope`` of what caps them, if it is asked for and they are capped.
    """
    scores = (_grouped(q, k.shape[1]) @ k.transpose(-1, -2)).float().mul_(rule.scale)
    steepness = None
    if rule.softcap is not None:
        scores = scores.div_(rule.softcap).tanh_()
        steepness = scores.square().neg_().add_(1) if slope else None
        scores *= rule.softcap
    at = torch.arange(sight.queries.start, sight.queries.stop, device=q.device)[:, None]
    key = torch.arange(sight.keys, sight.keys + k.shape[2], device=q.device)[None, :]
    by_query = scores.view(k.shape[0], k.shape[1], -1, q.shape[2], k.shape[2])
    if rule.slopes:
        slopes = torch.tensor(rule.slopes, device=q.device).view(k.shape[1], -1, 1, 1)
        by_query += slopes * (key - at)
    if sight.causal or rule.window is not None:
        hidden = key > at
        if rule.window is not None:
            hidden |= key <= at - rule.window
        by_query.masked_fill_(hidden, -inf)
    return scores, steepness


def _grouped(x: Tensor, heads: int) -> Tensor:
    """Return (1, G, R, h) of (1, H, n, h): the queries of all heads that share keys."""
    return x.reshape(1, heads, -1, x.shape[-1])
