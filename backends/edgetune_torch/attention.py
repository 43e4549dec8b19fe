"""Causal attention without a mask tensor: fused where the kernel can, in query chunks elsewhere.

B rows, H heads, G key/value heads, S queries, K keys, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edgetune.shape import Attention

QUERY_CHUNK = 256

Documents = tuple[tuple[int, ...], ...]


def attend(q: Tensor, k: Tensor, v: Tensor, rule: Attention, documents: Documents) -> Tensor:
    """Return the attention output (B, H, S, h) for q (B, H, S, h) and k, v (B, G, S, h).

    Attention restarts with each document; padding behind the documents gets zeros if a row
    holds several of them, and values that nobody reads otherwise.
    """
    if all(len(row) <= 1 for row in documents):
        return causal(q, k, v, rule)
    rows = [
        _row(q[i : i + 1], k[i : i + 1], v[i : i + 1], rule, lengths)
        for i, lengths in enumerate(documents)
    ]
    return torch.cat(rows)


def causal(q: Tensor, k: Tensor, v: Tensor, rule: Attention) -> Tensor:
    """Return causal attention; with fewer queries than keys, the queries are the last ones."""
    queries, keys = q.shape[2], k.shape[2]
    windowed = rule.window is not None and rule.window < keys
    if rule.softcap is None and not windowed and queries in {1, keys}:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=queries > 1, scale=rule.scale, enable_gqa=True
        )
    return torch.cat(_chunks(q, k, v, rule), dim=2)


def _row(q: Tensor, k: Tensor, v: Tensor, rule: Attention, lengths: tuple[int, ...]) -> Tensor:
    parts, start = [], 0
    for length in lengths:
        span = slice(start, start + length)
        parts.append(causal(q[:, :, span], k[:, :, span], v[:, :, span], rule))
        start += length
    if start < q.shape[2]:
        parts.append(torch.zeros_like(q[:, :, start:]))
    return torch.cat(parts, dim=2)


def _chunks(q: Tensor, k: Tensor, v: Tensor, rule: Attention) -> list[Tensor]:
    """Attend a chunk of queries at a time to the keys that it can see.

    In training a chunk is computed again in the backward pass: its scores are never kept.
    """
    offset = k.shape[2] - q.shape[2]
    outputs = []
    for start in range(0, q.shape[2], QUERY_CHUNK):
        stop = min(start + QUERY_CHUNK, q.shape[2])
        last = offset + stop
        first = 0 if rule.window is None else max(0, offset + start - rule.window + 1)
        part: Callable[..., Tensor] = partial(_explicit, rule=rule, shift=offset + start - first)
        inputs = (q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last])
        if torch.is_grad_enabled() and q.requires_grad:
            outputs.append(checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(part(*inputs))
    return outputs


def _explicit(q: Tensor, k: Tensor, v: Tensor, *, rule: Attention, shift: int) -> Tensor:
    """Compute softmax(q k^T) v with query i at key position ``shift + i``."""
    grouped = q.reshape(q.shape[0], k.shape[1], -1, *q.shape[2:])  # (B, G, H/G, S, h)
    scores = (grouped @ k.unsqueeze(2).transpose(-1, -2)).float() * rule.scale  # (B,G,H/G,S,K)
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    at = torch.arange(q.shape[2], device=q.device)[:, None] + shift
    keys = torch.arange(k.shape[2], device=q.device)[None, :]
    hidden = keys > at
    if rule.window is not None:
        hidden |= keys <= at - rule.window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(q.dtype)
    out: Tensor = weights @ v.unsqueeze(2)
    return out.flatten(1, 2)
