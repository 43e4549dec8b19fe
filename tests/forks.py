"""Attention of documents that go on from others, beside the same documents written out."""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune.shape import Attention
from edgetune_torch.attention import attend

HEADS, KEYS, POSITIONS, SIZE = 4, 2, 80, 16
DOCUMENTS = ((30, 22, 20), (24, 40))
SHARED = ((0, 17, 0), (0, 9))
"""The second documents go on from the first ones; the third does not."""
RULES = {
    "plain": Attention(scale=0.25),
    "window within a row": Attention(scale=0.25, window=50),
    "window within a document": Attention(scale=0.25, window=12),
    "capped": Attention(scale=0.25, softcap=2.0),
    "slopes": Attention(scale=0.25, slopes=(0.5, 0.25, 0.125, 0.0625)),
    "sinks": Attention(scale=0.25, sinks="sinks"),
}


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v that want gradients."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(len(DOCUMENTS), heads, POSITIONS, SIZE, generator=draw, dtype=torch.float32)
        for heads in (HEADS, KEYS, KEYS)
    )
    return tuple(x.to(dtype).requires_grad_() for x in (q, k, v))  # type: ignore[return-value]


def sinks_of(rule: Attention) -> Tensor | None:
    """Return the scores of sinks, where a rule has them."""
    return None if rule.sinks is None else torch.tensor([0.5, -1.0, 0.0, 2.0])


def documents(x: Tensor) -> list[Tensor]:
    """Return the part of x (B, heads, S, h) of every document, what it goes on from in front."""
    found = []
    for row, (lengths, shared) in enumerate(zip(DOCUMENTS, SHARED, strict=True)):
        start = before = 0
        for length, count in zip(lengths, shared, strict=True):
            own = x[row, :, start : start + length]
            found.append(torch.cat((x[row, :, before : before + count], own), 1))
            before, start = start, start + length
    return found


def written_out(q: Tensor, k: Tensor, v: Tensor, rule: Attention) -> list[Tensor]:
    """Return the outputs of the documents' own tokens, each attended in a row of its own."""
    found = []
    counts = [count for row in SHARED for count in row]
    for count, *parts in zip(counts, *map(documents, (q, k, v)), strict=True):
        alone = (x[None] for x in parts)
        length = parts[0].shape[1]
        found.append(attend(*alone, rule, ((length,),), sinks_of(rule))[0, :, count:])
    return found


def together(q: Tensor, k: Tensor, v: Tensor, rule: Attention) -> list[Tensor]:
    """Return the same outputs, of documents that go on from others."""
    sinks = sinks_of(rule)
    sinks = None if sinks is None else sinks.to(q.device)
    out = attend(q, k, v, rule, DOCUMENTS, sinks, SHARED)
    return [
        part[:, count:]
        for part, count in zip(documents(out), [n for row in SHARED for n in row], strict=True)
    ]
