"""Causal attention without a mask tensor: fused where the kernel can, in query chunks elsewhere.

On a processor it multiplies in float32: in 16 bits oneDNN would keep eight kernels for every
length of a document, and be no faster (docs/decisions/0018).

B rows, H heads, G key/value heads, S queries, K keys, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune.network.ops import Attended
from edgetune.shape import Attention
from edgetune_torch.documents import (
    Documents,
    Shared,
    Span,
    followed,
    longer,
    preceded,
    rows_of,
)
from edgetune_torch.flash import FusedOnCpu
from edgetune_torch.precision import attends, attention_dtype
from edgetune_torch.recomputed import recomputed
from edgetune_torch.tile_attention import Tile, attend_in_tile

QUERY_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Keys:
    """Which keys the queries of each row see: those before them in their document.

    So are those that it goes on from. If ``cached``, the queries are those of the last keys' tokens.
    In a ``tile`` of a block they see those of the tiles before it, too; ``documents`` are then those
    of whole rows.
    """

    documents: Documents
    shared: Shared = ()
    cached: bool = False
    tile: Tile | None = None


def attended_to(attended: Attended[Tensor]) -> Tensor:
    """Return the output (B, H, S, h) of attention to a row's own keys."""
    q, k, v, keys = attended.q, attended.k, attended.v, attended.keys
    if keys.tile is not None:
        return attend_in_tile(attended, keys.tile)
    if keys.cached:
        return causal(q, k, v, attended.rule, attended.sinks)
    return attend(q, k, v, attended.rule, keys.documents, attended.sinks, keys.shared)


def attended_behind(attended: Attended[Tensor], k: Tensor, v: Tensor) -> Tensor:
    """Return the output (B, H, S, h) with k and v (1, G, P, h) in front of every document's own.

    They are preceded by as many queries that nobody reads: attention stays square and causal,
    and needs no mask.
    """
    q, own, length = attended.q, attended.keys, k.shape[2]
    if own.tile is not None:
        return attend_in_tile(attended, own.tile, (k, v))
    if own.cached:
        keys, values = torch.cat((k, attended.k), 2), torch.cat((v, attended.v), 2)
        return causal(q, keys, values, attended.rule, attended.sinks)
    nothing = q.new_zeros(1, q.shape[1], length, q.shape[3])
    documents = own.documents, own.shared
    whole = replace(
        attended,
        q=preceded(q, nothing, *documents),
        k=preceded(attended.k, k, *documents),
        v=preceded(attended.v, v, *documents),
        keys=Keys(*longer(*documents, length)),
    )
    return followed(attended_to(whole), length, *documents, q.shape[2])


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
    shared: Shared = (),
) -> Tensor:
    """Return the attention output (B, H, S, h) for q (B, H, S, h) and k, v (B, G, S, h).

    Attention restarts with each document, or goes on from what it shares; padding behind the
    documents gets zeros if a row holds several of them, and values that nobody reads otherwise.
    """
    if _fused(rule, q.shape[2], q) and q.device.type == "cpu":
        out: Tensor = FusedOnCpu.apply(q, k, v, rule.scale, documents, shared)  # type: ignore[no-untyped-call]
        return out
    if all(len(row) <= 1 for row in documents):
        return causal(q, k, v, rule, sinks)
    rows = [
        _row(q[i : i + 1], k[i : i + 1], v[i : i + 1], rule, row, sinks)
        for i, row in rows_of(documents, shared)
    ]
    return torch.cat(rows)


def causal(q: Tensor, k: Tensor, v: Tensor, rule: Attention, sinks: Tensor | None = None) -> Tensor:
    """Return causal attention; with fewer queries than keys, the queries are the last ones."""
    queries, keys = q.shape[2], k.shape[2]
    if not _fused(rule, keys, q):
        return torch.cat(_chunks(q, k, v, rule, sinks), dim=2)
    dtype = attention_dtype(q.dtype, q.device)
    wide = q.to(dtype), k.to(dtype), v.to(dtype)
    if queries in {1, keys}:
        out = F.scaled_dot_product_attention(
            *wide, is_causal=queries > 1, scale=rule.scale, enable_gqa=True
        )
    else:
        out = torch.cat(list(_last_queries(*wide, rule.scale)), dim=2)
    return out.to(q.dtype)


def _last_queries(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Iterator[Tensor]:
    """Attend with the last queries only, some at a time: their mask is that much smaller."""
    for start in range(0, q.shape[2], QUERY_CHUNK):
        part = q[:, :, start : start + QUERY_CHUNK]
        first = k.shape[2] - q.shape[2] + start
        seen = first + part.shape[2]
        mask = torch.ones(part.shape[2], seen, dtype=torch.bool, device=q.device).tril(first)
        yield F.scaled_dot_product_attention(
            part, k[:, :, :seen], v[:, :, :seen], attn_mask=mask, scale=scale, enable_gqa=True
        )


def _fused(rule: Attention, keys: int, q: Tensor) -> bool:
    plain = rule.softcap is None and not rule.slopes and rule.sinks is None
    return plain and (rule.window is None or rule.window >= keys) and attends(q.dtype, q.device)


def _row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: Attention,
    row: list[Span],
    sinks: Tensor | None,
) -> Tensor:
    parts = [_document(q, k, v, rule, span, sinks) for span in row]
    stop = row[-1].own.stop if row else 0
    if stop < q.shape[2]:
        parts.append(torch.zeros_like(q[:, :, stop:]))
    return torch.cat(parts, dim=2)


def _document(
    q: Tensor, k: Tensor, v: Tensor, rule: Attention, span: Span, sinks: Tensor | None
) -> Tensor:
    own = q[:, :, span.own], k[:, :, span.own], v[:, :, span.own]
    if span.trunk is None:
        return causal(*own, rule, sinks)
    inputs = (*own, k[:, :, span.trunk], v[:, :, span.trunk])
    if _fused(rule, span.trunk.stop - span.trunk.start + own[0].shape[2], q):
        return recomputed(partial(_behind, rule=rule), *inputs)
    keys, values = (
        torch.cat((before, x), 2) for x, before in zip(own[1:], inputs[3:], strict=True)
    )
    return causal(own[0], keys, values, rule, sinks)


def _behind(
    q: Tensor, k: Tensor, v: Tensor, k_before: Tensor, v_before: Tensor, *, rule: Attention
) -> Tensor:
    """Return attention by the kernel to more keys than queries: it wants as many, and gets zeros."""
    length = k_before.shape[2]
    k, v = torch.cat((k_before, k), 2), torch.cat((v_before, v), 2)
    return causal(F.pad(q, (0, 0, length, 0)), k, v, rule)[:, :, length:]


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
        outputs.append(recomputed(part, *inputs))
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
