"""The terms in which kinds of devices differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What work costs on a kind of device where it was not measured."""

    products: float
    """Share of a device's peak rate that matrix products of a training step reach."""
    attention: float
    """Share of the products' rate that attention reaches."""
    beside_copies: float
    """Times as long a block computes while another one's weights arrive: copies take bandwidth,
    processor time and a wait between blocks.
    """
    operation: float
    """Seconds in which the host issues an operation."""
    asynchronous: bool
    """Whether operations are issued while the device computes earlier ones."""
    attends_wide: bool = False
    """Whether attention is in float32 whatever activations are in, and so are products where nothing
    multiplies 16 bits.
    """
    in_pieces: bool = False
    """Whether norms, rotations and gates are computed some rows at a time (:mod:`edgetune.pieces`)."""
    fused: bool = False
    """Whether norms, rotations and gates are one operation each."""
    updated_at_once: int = 1 << 20
    """Numbers of a trained tensor that the optimizer updates at a time."""
    lookups: float | None = None
    """Weights turned into numbers for each FLOP of peak rate, where bandwidth is not what counts."""
    sharing: float = 0.0
    """Seconds that element-by-element work takes at least where threads share it, before the factor
    by which a measured block differs: how much of its time small tensors do not save.
    """
