"""What a pass computes on, and in which number formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from edgetune.buckets import bucket
from edgetune.choice import Choice
from edgetune.device.base import DeviceKind
from edgetune.memory.costs import COSTS, Costs
from edgetune.shape import ModelShape
from edgetune.storage import (
    AFFINE,
    BYTES,
    FILE_FORMAT,
    FLOAT32_BYTES,
    GROUPS,
    file_kinds_of,
)

PIECE = 512
"""Rows that are widened at a time where products are wider than activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What of a device decides bytes besides their number."""

    kind: DeviceKind
    multiplies_16bit: bool
    """False: a processor, on which torch widens 16-bit activations to multiply them."""
    attends_16bit: bool = True
    """False: a card before Ampere, for which torch has no fused attention in bfloat16."""
    kernels: bool = False
    """Whether the backend's own kernels compute on it: a card's."""

    @property
    def costs(self) -> Costs:
        """What all devices of its kind have in common."""
        return COSTS[self.kind]

    @property
    def unpacks(self) -> bool:
        """Whether quantized matrices are unpacked to multiply them: lazily, on a processor."""
        return self.costs.lazy and not self.multiplies_16bit


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """B rows of S tokens: ``width`` bytes an activation, ``product`` bytes where multiplied.

    ``dense``: the products need the weights in another form than the stored one. ``stored``
    is the format of norms and biases.
    """

    batch: int
    context: int
    width: int
    product: int
    dense: bool
    stored: int
    recast: bool
    """Whether stored numbers are of another type than those multiplied."""
    dropout: bool
    keeps_scratch: bool
    lazy: bool = False
    """As :attr:`Costs.lazy`: what is pointwise keeps its inputs only, attention is in pieces."""
    unpacks: bool = False
    """As :attr:`Platform.unpacks`: quantized matrices are multiplied as plain numbers."""
    unpacking: float = 0.0
    """Bytes a weight takes beside them while it is unpacked."""
    documents: int = 1
    """Documents in the fullest row."""
    forked: bool = False
    """Whether documents go on from the beginning of others."""
    fuses: bool = True
    """Whether there is a kernel for attention that keeps no scores."""
    kernels: bool = False
    """As :attr:`Platform.kernels`: what is pointwise holds nothing beside its inputs and outputs."""
    tile: int = 0
    """Positions of a tile of a block that is computed tile by tile; 0: it is computed whole."""

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return self.batch * self.context

    def of_tile(self, reach: int = 0) -> BatchShape:
        """Return what a tile is computed on, with ``reach`` tokens before it."""
        return replace(self, context=self.tile + reach, tile=0)

    @property
    def upcast(self) -> bool:
        """Whether products are wider than activations."""
        return self.product != self.width

    @property
    def attended(self) -> int:
        """Bytes of a number where attention multiplies it; on a processor in float32."""
        return FLOAT32_BYTES if self.keeps_scratch else self.product

    def activation_bytes(self, columns: int) -> int:
        """Return the bytes of activations of so many columns."""
        return self.tokens * columns * self.width


def batch_shape_of(
    shape: ModelShape,
    choice: Choice,
    platform: Platform,
    documents: float | None = None,
    *,
    least: int = 1,
    forked: bool = False,
) -> BatchShape:
    """Return what the passes of a choice compute on.

    ``documents`` is the mean length of documents that share rows; None: ``least`` in each. The
    fullest row is taken to hold twice as many as the mean one. ``forked`` ones may go on from others.
    """
    sharing = least if documents is None else max(least, ceil(2 * choice.context / documents))
    costs, narrow = platform.costs, choice.compute_dtype != "float32"
    wide = narrow and costs.widens and not platform.multiplies_16bit
    multiplied = "float32" if wide else choice.compute_dtype
    blocks = costs.lazy and choice.quantization == FILE_FORMAT  # no kernel for them
    unpacks = platform.unpacks or blocks
    context = bucket(choice.context + sharing * choice.method.virtual_tokens)
    return BatchShape(
        batch=choice.micro_batch,
        context=context,
        width=BYTES[choice.compute_dtype],
        product=FLOAT32_BYTES if wide else BYTES[choice.compute_dtype],
        dense=choice.quantization != "none" or multiplied != shape.dtype,
        stored=BYTES[shape.dtype],
        recast=multiplied != shape.dtype,
        dropout=getattr(choice.method, "dropout", 0) > 0,
        keeps_scratch=costs.keeps_scratch,
        lazy=costs.lazy,
        unpacks=unpacks,
        unpacking=_unpacking(choice, shape, costs) if unpacks else 0.0,
        documents=sharing,
        forked=forked,
        fuses=platform.attends_16bit or choice.compute_dtype != "bfloat16",
        kernels=platform.kernels,
        tile=choice.tile if choice.tile < context else 0,
    )


def _unpacking(choice: Choice, shape: ModelShape, costs: Costs) -> float:
    """Return the bytes a weight takes on its way: in the type of its scales, or its scales.

    Out of the blocks of a GGUF file it comes as codes, and in float32 before it is rounded.
    """
    if choice.quantization == FILE_FORMAT:
        kinds = file_kinds_of(shape)
        codes = max((costs.file_codes.get(kind, 0.0) for kind in kinds), default=0.0)
        return codes if choice.compute_dtype == "float32" else codes + FLOAT32_BYTES
    if choice.quantization in AFFINE:
        return 0.0 if choice.compute_dtype == shape.dtype else BYTES[shape.dtype]
    group = GROUPS.get(choice.quantization)
    return 0.0 if group is None else BYTES[choice.compute_dtype] / group
