"""What each kind of device can do: the planner offers nothing that a backend cannot hold.

A plan for a machine that is not here needs no framework, which is why this is data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgetune.device.base import Device
from edgetune.settings.spec import (
    PAGED,
    ComputeDtype,
    EmbeddingPlace,
    HeadPlace,
    Offload,
    OptimizerName,
    Placement,
    Quantization,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What may be chosen on a device, what is preferred first."""

    quantizations: tuple[Quantization, ...]
    """From the most exact to the smallest."""
    placements: tuple[Placement, ...]
    offloads: tuple[Offload, ...]
    optimizers: tuple[OptimizerName, ...]
    compute_dtypes: tuple[ComputeDtype, ...]
    embeddings: tuple[EmbeddingPlace, ...] = ("resident",)
    heads: tuple[HeadPlace, ...] = ("resident",)
    """Places that change nothing but memory and time; others may be asked for."""
    on_request: tuple[Quantization, ...] = ()
    """Formats that are never chosen, only taken when they are asked for: no smaller at the same error."""
    keeps_streamed: bool = True
    """Whether blocks that are not resident may keep activations for the backward pass."""
    keeps_scored: bool = True
    """Whether blocks may keep activations while an objective scores answers."""
    keeps_lending: bool = True
    """Whether blocks may where some read the keys and values of others."""
    keeps_blocks: bool = True
    """Whether any block may keep activations for the backward pass."""
    streamed_blocks: int = 2
    """Blocks that are present at once where they are not resident."""


CUDA = Capability(
    quantizations=("none", "int8", "nf4"),
    placements=("resident", "host", "disk"),
    offloads=("none", "host", "disk"),
    optimizers=("adamw", "adamw-8bit", PAGED),
    compute_dtypes=("bfloat16",),
    embeddings=("resident", "disk"),
    heads=("resident", "disk"),
)
CPU = Capability(
    quantizations=("none", "int8", "nf4"),
    placements=("resident", "disk"),
    offloads=("none", "disk"),
    optimizers=("adamw", "adamw-8bit"),
    compute_dtypes=("float32", "bfloat16"),
    embeddings=("resident", "disk"),
    heads=("resident", "disk"),
)
MLX = Capability(
    quantizations=("none", "q8", "q4"),
    on_request=("mxfp4", "nvfp4"),
    placements=("resident", "disk"),
    offloads=("none", "disk"),
    optimizers=("adamw",),
    compute_dtypes=("bfloat16",),
    keeps_streamed=False,  # MLX's graph would keep the weights as well
    keeps_scored=False,  # and all that was computed, if it is asked for numbers half-way
    keeps_lending=False,  # or until the last gradient of lent keys is there
    streamed_blocks=1,
)


def capability_of(device: Device) -> Capability:
    """Return what can be chosen on a device."""
    match device.kind:
        case "cuda":
            card = CUDA if device.has_bfloat16 else replace(CUDA, compute_dtypes=("float16",))
            if not device.unified:
                return card
            # the host's memory is the card's
            return replace(
                card,
                placements=("resident", "disk"),
                offloads=("none", "disk"),
                optimizers=tuple(name for name in card.optimizers if name != PAGED),
            )
        case "mlx" if not device.multiplies_16bit:  # MLX on a processor
            return replace(MLX, compute_dtypes=("float32", "bfloat16"))
        case "mlx":
            return MLX
        case "cpu" if device.multiplies_16bit:
            return replace(CPU, compute_dtypes=("bfloat16", "float32"))
        case "cpu":
            return CPU
