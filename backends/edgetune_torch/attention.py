"""Causal attention without a mask tensor: fused where the kernel can, in query chunks elsewhere.

On a processor it multiplies in float32: in 16 bits oneDNN would keep eight kernels for every
length of a document, and be no faster (docs/decisions/0018).

B rows, H heads, G key/value heads, S queries, K keys, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edgetune.network.ops import Attended
from edgetune.shape import Attention
from edgetune_torch.documents import Documents, followed, preceded
from edgetune_torch.precision import attends, attention_dtype

QUERY_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Keys:
    """Which keys the queries of each row see: those before them in their document.

    If ``cached``, there is one query, of the last key's token.
    """

    documents: Documents
    cached: bool = False


Piece = tuple[slice, slice, slice]
"""Rows, heads and positions of one attended document."""


def attended_to(attended: Attended[Tensor]) -> Tensor:
    """Return the output (B, H, S, h) of attention to a row's own keys."""
    q, k, v, keys = attended.q, attended.k, attended.v, attended.keys
    if keys.cached:
        return causal(q, k, v, attended.rule, attended.sinks)
    return attend(q, k, v, attended.rule, keys.documents, attended.sinks)


def attended_behind(attended: Attended[Tensor], k: Tensor, v: Tensor) -> Tensor:
    """Return the output (B, H, S, h) with k and v (1, G, P, h) in front of every document's own.

    They are preceded by as many queries that nobody reads: attention stays square and causal,
    and needs no mask.
    """
    q, documents, length = attended.q, attended.keys.documents, k.shape[2]
    if attended.keys.cached:
        keys, values = torch.cat((k, attended.k), 2), torch.cat((v, attended.v), 2)
        return causal(q, keys, values, attended.rule, attended.sinks)
    nothing = q.new_zeros(1, q.shape[1], length, q.shape[3])
    longer = replace(
        attended,
        q=preceded(q, nothing, documents),
        k=preceded(attended.k, k, documents),
        v=preceded(attended.v, v, documents),
        keys=Keys(tuple(tuple(size + length for size in row) for row in documents)),
    )
    return followed(attended_to(longer), length, documents, q.shape[2])


def attend_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return the output (B, H, S, h) of attention to keys (1, G, P, h) that all queries see."""
    grouped = q.reshape(len(q), k.shape[1], -1, *q.shape[2:])  # (B, G, H/G, S, h)
    scores = grouped @ k.unsqueeze(2).transpose(-1, -2) * scale
    weights = scores.float().softmax(-1).to(q.dtype)
    return (weights @ v.unsqueeze(2)).flatten(1, 2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: Attention,
    documents: Documents,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return the attention output (B, H, S, h) for q (B, H, S, h) and k, v (B, G, S, h).

    Attention restarts with each document; padding behind the documents gets zeros if a row
    holds several of them, and values that nobody reads otherwise.
    """
    if _fused(rule, q.shape[2], q) and q.device.type == "cpu":
        out: Tensor = FusedOnCpu.apply(q, k, v, rule.scale, documents)  # type: ignore[no-untyped-call]
        return out
    if all(len(row) <= 1 for row in documents):
        return causal(q, k, v, rule, sinks)
    rows = [
        _row(q[i : i + 1], k[i : i + 1], v[i : i + 1], rule, lengths, sinks)
        for i, lengths in enumerate(documents)
    ]
    return torch.cat(rows)


def causal(q: Tensor, k: Tensor, v: Tensor, rule: Attention, sinks: Tensor | None = None) -> Tensor:
    """Return causal attention; with fewer queries than keys, the queries are the last ones."""
    queries, keys = q.shape[2], k.shape[2]
    if _fused(rule, keys, q) and queries in {1, keys}:
        dtype = attention_dtype(q.dtype, q.device)
        q_wide, k_wide, v_wide = q.to(dtype), k.to(dtype), v.to(dtype)
        return F.scaled_dot_product_attention(
            q_wide, k_wide, v_wide, is_causal=queries > 1, scale=rule.scale, enable_gqa=True
        ).to(q.dtype)
    return torch.cat(_chunks(q, k, v, rule, sinks), dim=2)


class FusedOnCpu(torch.autograd.Function):
    """The CPU's flash attention in float32, row by row or document by document.

    Saves q, k, v, the output (which the next projection saves too) and one float a query. What is
    narrower is widened a piece at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents
    ) -> Tensor:
        """Return the output (B, H, S, h), laid out (B, S, H, h)."""
        dtype, ctx.scale = attention_dtype(q.dtype, q.device), scale
        ctx.pieces = _pieces(documents, apart=dtype != q.dtype)
        out, sums = _laid_out(q), []
        for piece in ctx.pieces:
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(x[piece].to(dtype) for x in (q, k, v)), 0.0, True, scale=scale
            )
            out[piece] = part
            del part  # it must not live on beside the next piece
            sums.append(log_sum)
        ctx.save_for_backward(q, k, v, out, *sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Return the gradients of q, k and v."""
        q, k, v, out, *sums = ctx.saved_tensors
        dtype, results = attention_dtype(q.dtype, q.device), tuple(map(_laid_out, (q, k, v)))
        for piece, log_sum in zip(ctx.pieces, sums, strict=True):
            wide = [x[piece].to(dtype) for x in (grads[0], q, k, v, out)]
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *wide, log_sum, 0.0, True, scale=ctx.scale
            )
            for result, part in zip(results, parts, strict=True):
                result[piece] = part
            del wide, parts, part
        return (*results, None, None)


def _fused(rule: Attention, keys: int, q: Tensor) -> bool:
    plain = rule.softcap is None and not rule.slopes and rule.sinks is None
    return plain and (rule.window is None or rule.window >= keys) and attends(q.dtype, q.device)


def _pieces(documents: Documents, *, apart: bool) -> list[Piece]:
    """Return the documents; rows of one document each go together unless ``apart``, padding too."""
    everything = slice(None)
    if all(len(row) <= 1 for row in documents):
        rows = [slice(row, row + 1) for row in range(len(documents))] if apart else [everything]
        return [(row, everything, everything) for row in rows]
    return [
        (slice(row, row + 1), everything, span)
        for row, lengths in enumerate(documents)
        for span in _spans(lengths)
    ]


def _spans(lengths: tuple[int, ...]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _laid_out(x: Tensor) -> Tensor:
    """Return zeros like x (B, H, S, h) that can be flattened to (B, S, H h) without a copy."""
    rows, heads, positions, size = x.shape
    return x.new_zeros(rows, positions, heads, size).transpose(1, 2)


def _row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: Attention,
    lengths: tuple[int, ...],
    sinks: Tensor | None,
) -> Tensor:
    spans = list(_spans(lengths))
    parts = [causal(q[:, :, span], k[:, :, span], v[:, :, span], rule, sinks) for span in spans]
    if sum(lengths) < q.shape[2]:
        parts.append(torch.zeros_like(q[:, :, sum(lengths) :]))
    return torch.cat(parts, dim=2)


def _chunks(q: Tensor, k: Tensor, v: Tensor, rule: Attention, sinks: Tensor | None) -> list[Tensor]:
    """Attend a chunk of queries at a time to the keys that it can see.

    In training a chunk is computed again in the backward pass: its scores are never kept.
    """
    offset = k.shape[2] - q.shape[2]
    outputs = []
    for start in range(0, q.shape[2], QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, q.shape[2])
        last = offset + stop
        first = 0 if rule.window is None else max(0, offset + start - rule.window + 1)
        part: Callable[..., Tensor] = partial(
            _explicit, rule=rule, shift=offset + start - first, sinks=sinks
        )
        inputs = (q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last])
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            outputs.append(checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(part(*inputs))
    return outputs


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, *, rule: Attention, shift: int, sinks: Tensor | None
) -> Tensor:
    """Compute softmax(q k^T) v with query i at key position ``shift + i``."""
    dtype = attention_dtype(q.dtype, q.device)
    grouped = q.reshape(q.shape[0], k.shape[1], -1, *q.shape[2:]).to(dtype)  # (B, G, H/G, S, h)
    keys_T = k.to(dtype).unsqueeze(2).transpose(-1, -2)
    scores = (grouped @ keys_T).float() * rule.scale  # (B, G, H/G, S, K)
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    at = torch.arange(q.shape[2], device=q.device)[:, None] + shift
    keys = torch.arange(k.shape[2], device=q.device)[None, :]
    if rule.slopes:
        slopes = torch.tensor(rule.slopes, device=q.device).view(k.shape[1], -1, 1, 1)
        scores = scores + slopes * (keys - at)
    hidden = keys > at
    if rule.window is not None:
        hidden |= keys <= at - rule.window
    scores, values = scores.masked_fill(hidden, float("-inf")), v.to(dtype)
    if sinks is not None:
        column = sinks.float().view(k.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, column), -1)
        values = F.pad(values, (0, 0, 0, 1))
    weights = scores.softmax(-1).to(dtype)
    del scores
    out: Tensor = (weights @ values.unsqueeze(2)).to(q.dtype)
    return out.flatten(1, 2)
