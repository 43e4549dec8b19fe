"""Mixers token by token, as plainly as they can be written: what the engines are held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune.mixer import PIECE, SPAN, Recurrent
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.network.mixers.short_convolution import ShortConvolution
from edgetune.network.mixers.state_space import StateSpace

Documents = tuple[tuple[int, ...], ...]
Own = Mapping[str, Tensor]
"""A mixer's tensors by their roles."""


@dataclass(frozen=True)
class Plain:
    """A kind of mixer: the width of each of its inputs, and what it makes of them (B, S, ...)."""

    widths: Callable[[Any], tuple[int, ...]]
    output: Callable[[Any, Sequence[Tensor], Own, Documents], Tensor]


def gated_convolution(
    _: ShortConvolution, inputs: Sequence[Tensor], own: Own, documents: Documents
) -> Tensor:
    """Return what a short convolution makes (B, S, D)."""
    b, c, u = inputs[0].chunk(3, -1)
    return c * (convolved(b * u, own["conv"], documents) + own["conv_bias"])


def corrected(
    mixer: GatedDelta, inputs: Sequence[Tensor], own: Own, documents: Documents
) -> Tensor:
    """Return what Gated DeltaNet reads (B, S, H V)."""
    x, b, a = inputs
    y = F.silu(convolved(x, own["conv"], documents))
    q, k, v = y.split((mixer.keys, mixer.keys, mixer.values), -1)
    shared = mixer.value_heads // mixer.key_heads
    q, k = (_unit(each.unflatten(2, (mixer.key_heads, -1))) for each in (q, k))
    q, k = (each.repeat_interleave(shared, 2) for each in (q / mixer.key_dim**0.5, k))
    v = v.unflatten(2, (mixer.value_heads, -1))
    leaves, beta = (-own["a_log"].exp() * F.softplus(a + own["dt_bias"])).exp(), b.sigmoid()
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


def scanned(mixer: StateSpace, inputs: Sequence[Tensor], own: Own, documents: Documents) -> Tensor:
    """Return what Mamba-2 reads (B, S, H V)."""
    x, steps = inputs
    y = F.silu(convolved(x, own["conv"], documents) + own["conv_bias"])
    v, k, q = y.split((mixer.values, mixer.keys, mixer.keys), -1)
    v, shared = v.unflatten(2, (mixer.heads, -1)), mixer.heads // mixer.groups
    q, k = (each.unflatten(2, (mixer.groups, -1)) for each in (q, k))
    q, k = (each.repeat_interleave(shared, 2) for each in (q, k))
    dt = F.softplus(steps + own["dt_bias"]).clamp(mixer.least_step, mixer.most_step)
    leaves = (-own["a_log"].exp() * dt).exp()
    rows = []
    for row, lengths in enumerate(documents):
        read, starts = [], {0, *np.cumsum(lengths).tolist()}
        for at in range(x.shape[1]):
            if at in starts:
                state = x.new_zeros(mixer.heads, mixer.key_dim, mixer.value_dim)
            new = v[row, at] * dt[row, at, :, None]
            state = state * leaves[row, at, :, None, None] + k[row, at, :, :, None] * new[:, None]
            out = torch.einsum("hkv,hk->hv", state, q[row, at]) + own["skip"][:, None] * v[row, at]
            read.append(out.flatten())
        rows.append(torch.stack(read))
    return torch.stack(rows)


PLAIN: Mapping[str, Plain] = {
    "short_convolution": Plain(lambda mixer: (3 * mixer.channels,), gated_convolution),
    "gated_delta": Plain(lambda m: (m.channels, m.value_heads, m.value_heads), corrected),
    "state_space": Plain(lambda mixer: (mixer.channels, mixer.heads), scanned),
}
"""The kinds of mixers by their names."""

CASES: Mapping[str, tuple[Recurrent, Documents]] = {
    "a convolution": (
        ShortConvolution(channels=5, taps=3, module="", bias=True),
        ((19,), (19,)),
    ),
    "a convolution, packed": (
        ShortConvolution(channels=5, taps=3, module="", bias=True),
        ((4, 1, 14), (9,)),
    ),
    "a delta rule, two pieces and a rest": (
        GatedDelta(key_heads=2, value_heads=4, key_dim=5, value_dim=3, taps=4, module=""),
        ((150,), (150,)),
    ),
    "a delta rule, packed": (
        GatedDelta(key_heads=3, value_heads=3, key_dim=4, value_dim=6, taps=3, module=""),
        ((5, 70, 56), (64, 1, 66)),
    ),
    "a delta rule, padded": (
        GatedDelta(key_heads=1, value_heads=2, key_dim=4, value_dim=4, taps=2, module=""),
        ((100, 40), (120,)),
    ),
    "a delta rule, less than a piece": (
        GatedDelta(key_heads=1, value_heads=2, key_dim=8, value_dim=8, taps=4, module=""),
        ((7,),),
    ),
    "a scan, a span and a rest": (
        StateSpace(heads=4, groups=2, value_dim=3, key_dim=5, taps=4, module=""),
        ((SPAN + 70,), (SPAN + 70,)),
    ),
    "a scan, packed": (
        StateSpace(heads=3, groups=3, value_dim=4, key_dim=6, taps=3, module=""),
        ((5, 70, 56), (64, 1, 66)),
    ),
    "a scan, packed over spans": (
        StateSpace(heads=2, groups=1, value_dim=2, key_dim=3, taps=4, module=""),
        ((SPAN - 2, 4, 61), (3, SPAN + 40)),
    ),
    "a scan, padded": (
        StateSpace(heads=2, groups=1, value_dim=4, key_dim=4, taps=2, module=""),
        ((100, 40), (120,)),
    ),
    "a scan, steps within limits": (
        StateSpace(
            heads=2, groups=1, value_dim=4, key_dim=6, taps=3, module="", least_step=0.4,
            most_step=1.5,
        ),
        ((2, 5), (PIECE + 9,)),
    ),
}  # fmt: skip
"""Mixers, and the documents of rows that they are tried on."""


def random_inputs(mixer: Recurrent, documents: Documents) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return what a mixer's projections could have made (B, S, ...), and its own tensors."""
    draw = torch.Generator().manual_seed(1)
    rows, positions = len(documents), max(map(sum, documents))

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=draw).requires_grad_()

    inputs = [drawn(rows, positions, width) for width in PLAIN[mixer.kind].widths(mixer)]
    return inputs, {tensor.role: drawn(*tensor.shape) for tensor in mixer.tensors}


def token_by_token(
    mixer: Recurrent, inputs: Sequence[Tensor], own: Own, documents: Documents
) -> Tensor:
    """Return what a mixer makes of its inputs (B, S, ...)."""
    return PLAIN[mixer.kind].output(mixer, inputs, own, documents)


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
