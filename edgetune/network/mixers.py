"""The text of the mixers that are not attention, between a block's norm and its stream.

B rows, S positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgetune.mixer import GatedDelta, MixerRole, Recurrent, ShortConvolution, StateSpace
from edgetune.network.ops import A, Ops

if TYPE_CHECKING:
    from edgetune.network.block import Block


def mixer_output(block: Block[A], x: A, mixer: Recurrent) -> A:
    """Return what a mixer makes of x (B, S, D), its output projection behind it."""
    match mixer:
        case ShortConvolution():
            return convolved(block, x)
        case GatedDelta():
            return corrected(block, x, mixer)
        case StateSpace():
            return scanned(block, x, mixer)


def mix(
    ops: Ops[A], mixer: Recurrent | None, inputs: Sequence[A], trained: Mapping[MixerRole, A]
) -> A:
    """Return what a mixer makes (B, S, ...) of what its projections made.

    Its frozen tensors are in the operations; what is ``trained`` of them stands in for them.
    """
    match mixer:
        case ShortConvolution():
            (x,) = inputs
            weight, bias = trained.get("conv"), trained.get("conv_bias")
            return ops.short_convolution(x, weight, bias)
        case GatedDelta():
            x, b, a = inputs
            get = trained.get
            return ops.gated_delta(x, b, a, get("conv"), get("a_log"), get("dt_bias"))
        case StateSpace():
            x, steps = inputs
            return ops.state_space(x, steps, trained)
        case None:
            raise TypeError("attention attends: it has a place of its own")


def convolved(block: Block[A], x: A) -> A:
    """Return what a short convolution (LFM2) makes of x (B, S, D)."""
    return block.project("conv_out", block.method.mix(block, [block.project("conv_in", x)]))


def corrected(block: Block[A], x: A, mixer: GatedDelta) -> A:
    """Return what Gated DeltaNet (Qwen3.5) makes of x (B, S, D)."""
    ops = block.ops
    inputs = [block.project(role, x) for role in ("delta_qkv", "delta_b", "delta_a")]
    out = ops.to_heads(block.method.mix(block, inputs), mixer.value_dim)
    del inputs
    out = block.norm("delta", out)
    gate = ops.to_heads(block.project("delta_z", x), mixer.value_dim)
    out = ops.gated(gate, out, "silu")
    return block.project("delta_out", ops.from_heads(ops.heads_first(out)))


def scanned(block: Block[A], x: A, mixer: StateSpace) -> A:
    """Return what Mamba-2 (Granite 4 H) makes of x (B, S, D)."""
    ops = block.ops
    gate, read, steps = ops.split(block.project("scan_in", x), mixer.parts)
    out = block.method.mix(block, [read, steps])
    del read, steps
    if mixer.multipliers:
        gate = ops.scaled(gate, mixer.multipliers[0])
    if mixer.normed_first:
        out = block.norm("scan", out)
    out = ops.gated(gate, out, "silu")
    del gate
    return block.project("scan_out", out if mixer.normed_first else block.norm("scan", out))
