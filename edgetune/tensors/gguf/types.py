"""What a GGUF file is made of: its numbers, its kinds of metadata, its formats of tensors.

A tensor is rows of numbers; a row is whole blocks of a few numbers that share their scales. The
numbers in this file are those of the published format (ggml's ``docs/gguf.md`` and its enums).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"GGUF"
VERSION: Final = 3
"""The version that is written; 2 differs in nothing that matters to a little-endian file."""

DEFAULT_ALIGNMENT: Final = 32
"""Bytes to whose multiples tensors are moved, unless ``general.alignment`` says another number."""

SUPER_BLOCK: Final = 256
"""Weights of a block of the K-quants; a row must be whole blocks of its type."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """A number format of tensors: ``block`` numbers take ``nbytes`` bytes."""

    id: int
    name: str
    block: int
    nbytes: int

    @property
    def bits(self) -> float:
        """Bits a number, its share of the scales included."""
        return 8 * self.nbytes / self.block

    def row_bytes(self, inputs: int) -> int:
        """Return the bytes of a row.

        Raises:
            ValueError: if it is not whole blocks.
        """
        if inputs % self.block:
            raise ValueError(f"{self.name}: a row of {inputs} is no whole blocks of {self.block}")
        return inputs // self.block * self.nbytes


_SIMPLE: Final = (
    TensorType(0, "F32", 1, 4),
    TensorType(1, "F16", 1, 2),
    TensorType(30, "BF16", 1, 2),
    TensorType(28, "F64", 1, 8),
    TensorType(24, "I8", 1, 1),
    TensorType(25, "I16", 1, 2),
    TensorType(26, "I32", 1, 4),
    TensorType(27, "I64", 1, 8),
)

_BLOCKS_OF_32: Final = (
    TensorType(2, "Q4_0", 32, 2 + 16),
    TensorType(3, "Q4_1", 32, 4 + 16),
    TensorType(6, "Q5_0", 32, 2 + 4 + 16),
    TensorType(7, "Q5_1", 32, 4 + 4 + 16),
    TensorType(8, "Q8_0", 32, 2 + 32),
    TensorType(9, "Q8_1", 32, 4 + 4 + 32),
    TensorType(20, "IQ4_NL", 32, 2 + 16),
    TensorType(39, "MXFP4", 32, 1 + 16),
)

_K_QUANTS: Final = (
    TensorType(10, "Q2_K", 256, 16 + 64 + 4),
    TensorType(11, "Q3_K", 256, 32 + 64 + 12 + 2),
    TensorType(12, "Q4_K", 256, 4 + 12 + 128),
    TensorType(13, "Q5_K", 256, 4 + 12 + 32 + 128),
    TensorType(14, "Q6_K", 256, 128 + 64 + 16 + 2),
    TensorType(15, "Q8_K", 256, 4 + 256 + 32),
)

_OTHERS: Final = (
    TensorType(16, "IQ2_XXS", 256, 66),
    TensorType(17, "IQ2_XS", 256, 74),
    TensorType(18, "IQ3_XXS", 256, 98),
    TensorType(19, "IQ1_S", 256, 50),
    TensorType(21, "IQ3_S", 256, 110),
    TensorType(22, "IQ2_S", 256, 82),
    TensorType(23, "IQ4_XS", 256, 136),
    TensorType(29, "IQ1_M", 256, 56),
    TensorType(34, "TQ1_0", 256, 54),
    TensorType(35, "TQ2_0", 256, 66),
    TensorType(40, "NVFP4", 64, 36),
    TensorType(41, "Q1_0", 128, 18),
)

_ALL: Final = (*_SIMPLE, *_BLOCKS_OF_32, *_K_QUANTS, *_OTHERS)

BY_ID: Final[Mapping[int, TensorType]] = {kind.id: kind for kind in _ALL}
BY_NAME: Final[Mapping[str, TensorType]] = {kind.name: kind for kind in _ALL}

FLOATS: Final[Mapping[str, str]] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The plain number formats, and what they are called here."""

QUANTIZED: Final = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4",
)  # fmt: skip
"""The formats in blocks that are computed with; the others are refused by name."""


@dataclass(frozen=True, slots=True)
class ValueType:
    """A kind of metadata; ``code`` is what ``struct`` calls a number, empty for the others."""

    id: int
    name: str
    code: str = ""


STRING: Final = ValueType(8, "string")
ARRAY: Final = ValueType(9, "array")

VALUE_TYPES: Final[Mapping[int, ValueType]] = {
    kind.id: kind
    for kind in (
        ValueType(0, "uint8", "B"),
        ValueType(1, "int8", "b"),
        ValueType(2, "uint16", "H"),
        ValueType(3, "int16", "h"),
        ValueType(4, "uint32", "I"),
        ValueType(5, "int32", "i"),
        ValueType(6, "float32", "f"),
        ValueType(7, "bool", "?"),
        STRING,
        ARRAY,
        ValueType(10, "uint64", "Q"),
        ValueType(11, "int64", "q"),
        ValueType(12, "float64", "d"),
    )
}
