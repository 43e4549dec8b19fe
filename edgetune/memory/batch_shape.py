"""What a pass computes on, and in which number formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from edgetune.buckets import bucket
from edgetune.choice import Choice
from edgetune.shape import ModelShape
from edgetune.storage import (
    AFFINE,
    BYTES,
    FILE_FORMAT,
    FLOAT32_BYTES,
    GROUPS,
    file_kinds_of,
)

Kind = Literal["cuda", "cpu", "mlx"]

FILE_CODES = {
    "Q4_0": 2.2, "Q4_1": 2.4, "Q5_0": 3.2, "Q5_1": 3.4, "Q8_0": 1.2, "MXFP4": 2.2,
    "Q2_K": 1.6, "Q3_K": 2.5, "Q4_K": 1.5, "Q5_K": 2.5, "Q6_K": 2.4,
}  # fmt: skip
"""Bytes a weight's codes and scales take on MLX before they are numbers, as measured."""

PIECE = 512
"""Rows that are widened at a time where products are wider than activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What of a device decides bytes besides their number."""

    kind: Kind
    multiplies_16bit: bool
    """False: a processor, on which torch widens 16-bit activations to multiply them."""
    attends_16bit: bool = True
    """False: a card before Ampere, for which torch has no fused attention in bfloat16."""

    @property
    def keeps_scratch(self) -> bool:
        """Whether buffers of products are kept instead of given back to an allocator."""
        return self.kind == "cpu"

    @property
    def lazy(self) -> bool:
        """Whether a graph is evaluated as a whole, so that a value dies at its last use in it."""
        return self.kind == "mlx"

    @property
    def unpacks(self) -> bool:
        """Whether quantized matrices are unpacked to multiply them: lazily, on a processor."""
        return self.lazy and not self.multiplies_16bit


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
    """As :attr:`Platform.lazy`: what is pointwise keeps its inputs only, attention is in pieces."""
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
    tile: int = 0
    """Positions of a tile of a block that is computed tile by tile; 0: it is computed whole."""

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return self.batch * self.context

    def of_tile(self) -> BatchShape:
        """Return what a tile is computed on."""
        return replace(self, context=self.tile, tile=0)

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
    narrow = choice.compute_dtype != "float32"
    wide = narrow and platform.kind == "cpu" and not platform.multiplies_16bit
    multiplied = "float32" if wide else choice.compute_dtype
    blocks = platform.lazy and choice.quantization == FILE_FORMAT  # no kernel for them
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
        keeps_scratch=platform.keeps_scratch,
        lazy=platform.lazy,
        unpacks=unpacks,
        unpacking=_unpacking(choice, shape) if unpacks else 0.0,
        documents=sharing,
        forked=forked,
        fuses=platform.attends_16bit or not narrow,
        tile=choice.tile if choice.tile < context and not platform.lazy else 0,
    )


def _unpacking(choice: Choice, shape: ModelShape) -> float:
    """Return the bytes a weight takes on its way: in the type of its scales, or its scales.

    Out of the blocks of a GGUF file it comes as codes, and in float32 before it is rounded.
    """
    if choice.quantization == FILE_FORMAT:
        codes = max((FILE_CODES.get(kind, 0.0) for kind in file_kinds_of(shape)), default=0.0)
        return codes if choice.compute_dtype == "float32" else codes + FLOAT32_BYTES
    if choice.quantization in AFFINE:
        return 0.0 if choice.compute_dtype == shape.dtype else BYTES[shape.dtype]
    group = GROUPS.get(choice.quantization)
    return 0.0 if group is None else BYTES[choice.compute_dtype] / group
