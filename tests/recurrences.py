"""Mixers token by token, as plainly as they can be written: what the engines are held against."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune.mixer import GatedDelta, StateSpace

Documents = tuple[tuple[int, ...], ...]


def random_inputs(mixer: GatedDelta, documents: Documents) -> list[Tensor]:
    """Return x, b, a, the convolution's weight, ``A_log`` and ``dt_bias``."""
    draw = torch.Generator().manual_seed(1)
    rows, positions, heads = len(documents), max(map(sum, documents)), mixer.value_heads
    sizes = (
        (rows, positions, mixer.channels), (rows, positions, heads), (rows, positions, heads),
        (mixer.channels, 1, mixer.taps), (heads,), (heads,),
    )  # fmt: skip
    return [torch.randn(s, dtype=torch.float64, generator=draw).requires_grad_() for s in sizes]


def token_by_token(inputs: list[Tensor], mixer: GatedDelta, documents: Documents) -> Tensor:
    """Return what Gated DeltaNet reads (B, S, H V)."""
    x, b, a, conv, a_log, dt_bias = inputs
    y = F.silu(convolved(x, conv, documents))
    q, k, v = y.split((mixer.keys, mixer.keys, mixer.values), -1)
    shared = mixer.value_heads // mixer.key_heads
    q, k = (_unit(each.unflatten(2, (mixer.key_heads, -1))) for each in (q, k))
    q, k = (each.repeat_interleave(shared, 2) for each in (q / mixer.key_dim**0.5, k))
    v = v.unflatten(2, (mixer.value_heads, -1))
    leaves, beta = (-a_log.exp() * F.softplus(a + dt_bias)).exp(), b.sigmoid()
    rows = []
    for row, lengths in enumerate(documents):
        read, starts = [], {0, *np.cumsum(lengths).tolist()}
        for at in range(x.shape[1]):
            if at in starts:
                state = x.new_zeros(mixer.value_heads, mixer.key_dim, mixer.value_dim)
            state = state * leaves[row, at, :, None, None]
            missing = v[row, at] - torch.einsum("hkv,hk->hv", state, k[row, at])
            new = missing * beta[row, at, :, None]
            state = state + k[row, at, :, :, None] * new[:, None]
            read.append(torch.einsum("hkv,hk->hv", state, q[row, at]).flatten())
        rows.append(torch.stack(read))
    return torch.stack(rows)


def random_scan_inputs(mixer: StateSpace, documents: Documents) -> list[Tensor]:
    """Return x, steps, the convolution's weight and bias, ``A_log``, ``dt_bias`` and ``D``."""
    draw = torch.Generator().manual_seed(1)
    rows, positions, heads = len(documents), max(map(sum, documents)), mixer.heads
    sizes = (
        (rows, positions, mixer.channels), (rows, positions, heads),
        (mixer.channels, 1, mixer.taps), (mixer.channels,), (heads,), (heads,), (heads,),
    )  # fmt: skip
    return [torch.randn(s, dtype=torch.float64, generator=draw).requires_grad_() for s in sizes]


def scanned_by_token(inputs: list[Tensor], mixer: StateSpace, documents: Documents) -> Tensor:
    """Return what Mamba-2 reads (B, S, H V)."""
    x, steps, conv, bias, a_log, dt_bias, skip = inputs
    y = F.silu(convolved(x, conv, documents) + bias)
    v, k, q = y.split((mixer.values, mixer.keys, mixer.keys), -1)
    v, shared = v.unflatten(2, (mixer.heads, -1)), mixer.heads // mixer.groups
    q, k = (each.unflatten(2, (mixer.groups, -1)) for each in (q, k))
    q, k = (each.repeat_interleave(shared, 2) for each in (q, k))
    dt = F.softplus(steps + dt_bias).clamp(mixer.least_step, mixer.most_step)
    leaves = (-a_log.exp() * dt).exp()
    rows = []
    for row, lengths in enumerate(documents):
        read, starts = [], {0, *np.cumsum(lengths).tolist()}
        for at in range(x.shape[1]):
            if at in starts:
                state = x.new_zeros(mixer.heads, mixer.key_dim, mixer.value_dim)
            new = v[row, at] * dt[row, at, :, None]
            state = state * leaves[row, at, :, None, None] + k[row, at, :, :, None] * new[:, None]
            out = torch.einsum("hkv,hk->hv", state, q[row, at]) + skip[:, None] * v[row, at]
            read.append(out.flatten())
        rows.append(torch.stack(read))
    return torch.stack(rows)


def convolved(x: Tensor, weight: Tensor, documents: Documents) -> Tensor:
    """Return the causal convolution (B, S, D) of each document of x with weight (D, 1, K)."""
    taps, rows = weight.shape[2], []
    for row, lengths in zip(x, documents, strict=True):
        parts = list(_parts(row, lengths))
        padded = [F.pad(part, (0, 0, taps - 1, 0)).T[None] for part in parts]
        rows.append(torch.cat([F.conv1d(part, weight, groups=len(weight))[0].T for part in padded]))
    return torch.stack(rows)


def _parts(row: Tensor, lengths: tuple[int, ...]) -> Iterator[Tensor]:
    edges = [0, *np.cumsum(lengths).tolist(), len(row)]
    yield from (row[start:stop] for start, stop in pairwise(edges) if stop > start)


def _unit(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def under_loss(documents: Documents, positions: int | None = None) -> Tensor:
    """Return which tokens belong to a document (B, S, 1)."""
    positions = positions or max(map(sum, documents))
    return torch.tensor([[at < sum(row) for at in range(positions)] for row in documents])[
        ..., None
    ]


def apart(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, for the largest number."""
    return float(((found - expected).abs().max() / expected.abs().max()).detach())
