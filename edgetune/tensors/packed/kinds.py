"""What the matrices of quantized checkpoints consist of; the kinds differ in what a code means.

A matrix has N rows (outputs) of K numbers (inputs). Codes lie in ``file`` from ``start`` on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Final

from edgetune.tensors.header import StoredTensor

SPAN: Final = 1 << 18
"""Numbers that are unpacked at a time."""

BESIDE: Final = 24
"""Bytes that unpacking takes for each of them: codes, scales and values as float32, the result."""

NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of the normal distribution (Dettmers 2023, section 3), which the codes of NF4 stand for."""

NF4_BLOCK: Final = 64
"""Numbers that share a scale in NF4 as it is stored here."""
NF4_GROUP: Final = 256
"""Scales that share a scale of their own there."""


@dataclass(frozen=True, slots=True)
class PackedTensor(StoredTensor, ABC):
    """A matrix with the ``shape`` that the model gives it; ``dtype`` is that of its numbers.

    They are computed in float32 and rounded to it once.
    """

    turned: bool = False
    """Whether the model has (inputs, outputs): the codes are always those of (outputs, inputs)."""

    columns_apart: ClassVar[bool] = False
    """Whether codes of one row lie far from each other, so that all of them are read at once."""

    @property
    @abstractmethod
    def parts(self) -> tuple[StoredTensor, ...]:
        """All tensors that the numbers are made of."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What the format is, for people."""

    @property
    def kept_as(self) -> str | None:
        """The format of ours that takes codes and scales as they are, if there is one."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of all parts in their files."""
        return sum(part.end - part.start for part in self.parts)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the codes; a stack of matrices is one below the other."""
        if self.turned:
            return self.shape[1], self.shape[0]
        return prod(self.shape[:-1]), self.shape[-1]

    @property
    def unpacking_bytes(self) -> int:
        """Most bytes of memory that are taken beside the numbers while they are made."""
        rows, inputs = self.size
        held = self.nbytes if self.columns_apart else self.nbytes - (self.end - self.start)
        return held + BESIDE * min(rows * inputs, max(SPAN, inputs))

    def turned_around(self) -> PackedTensor:
        """Return the same matrix for a model that has it as (inputs, outputs)."""
        return replace(self, turned=True, shape=self.shape[::-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledTensor(PackedTensor):
    """Numbers of eight bits, float8 or int8, each times the scale of its block.

    Of a stack of matrices each has a grid of scales of its own.
    """

    kind: str
    """Number format of the codes, whatever type their bytes have in the file."""
    scales: StoredTensor
    block: tuple[int, int]
    """Rows and columns that share a scale."""
    zeros: StoredTensor | None = None
    """What is taken from the codes first, one for each scale."""
    factor: float = 1.0
    """What all scales are multiplied with."""
    height: int
    """Rows of a matrix of the stack."""
    first: int = 0
    """Rows of the stack that lie before the first one here."""
    label: str
    """What the format is, for people."""

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Codes, scales, zero points."""
        codes = StoredTensor(
            self.file, self.name, "uint8", (self.end - self.start,), self.start, self.end
        )
        return (codes, self.scales, *([] if self.zeros is None else [self.zeros]))

    @property
    def words(self) -> str:
        """Return the label."""
        return self.label

    @property
    def kept_as(self) -> str | None:
        """Return ``int8`` for whole numbers with one scale a row."""
        plain = self.kind == "int8" and self.zeros is None and self.block[1] >= self.size[1]
        return "int8" if plain and len(self.shape) == 2 else None

    def rows_from(self, first: int, shape: tuple[int, ...]) -> ScaledTensor:
        """Return the rows from ``first`` on, as many as ``shape`` has."""
        inputs = shape[-1]
        start = self.start + first * inputs
        return replace(
            self,
            shape=shape,
            start=start,
            end=start + prod(shape),
            first=self.first + first,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedScales:
    """Scales that are codes themselves: ``table[code] * scale of a group + offset``."""

    scales: StoredTensor
    table: StoredTensor
    group: int
    offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockwiseTensor(PackedTensor):
    """bitsandbytes' four bits: two codes a byte, the first in the high half, for all rows in turn.

    A scale belongs to ``block`` numbers, which can go over the end of a row.
    """

    kind: str
    """``nf4`` or ``fp4``."""
    scales: StoredTensor
    table: tuple[float, ...]
    """The 16 numbers that codes stand for."""
    block: int
    nested: NestedScales | None = None

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Codes, scales, and what scales are made of."""
        codes = StoredTensor(
            self.file, self.name, "uint8", (self.end - self.start,), self.start, self.end
        )
        nested = () if self.nested is None else (self.nested.scales, self.nested.table)
        return (codes, self.scales, *nested)

    @property
    def words(self) -> str:
        """Return its name."""
        return f"bitsandbytes' {self.kind.upper()}"

    @property
    def kept_as(self) -> str | None:
        """Return ``nf4`` where the codes and the codes of the scales are those of our own NF4."""
        nested = self.nested
        same = nested is not None and (self.block, nested.group) == (NF4_BLOCK, NF4_GROUP)
        return "nf4" if same and self.table == NF4 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqTensor(PackedTensor):
    """GPTQ: ``(code - zero) * scale``; codes (K bits / 32, N), zeros (groups, N bits / 32).

    The codes of a column follow each other in 32-bit words from the lowest bits on, the zeros of a
    group in its row.
    """

    codes: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    """(groups, N)."""
    groups: StoredTensor | None
    """The group of each input (K,), where it is written down (``desc_act``)."""
    group: int
    """Inputs of a group, where it is not."""
    bits: int
    less_one: bool
    """Whether zeros are one less than meant, as in the first version of the format."""

    columns_apart = True

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Codes, zeros, scales, groups."""
        groups = () if self.groups is None else (self.groups,)
        return (self.codes, self.zeros, self.scales, *groups)

    @property
    def words(self) -> str:
        """Return its name and bits."""
        return f"GPTQ in {self.bits} bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqTensor(PackedTensor):
    """AWQ in its ``gemm`` order: ``(code - zero) * scale``; codes (K, N / 8), zeros (groups, N / 8).

    A word has the codes of eight rows, those with even numbers first.
    """

    codes: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    """(groups, N)."""
    group: int

    columns_apart = True

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Codes, zeros, scales."""
        return (self.codes, self.zeros, self.scales)

    @property
    def words(self) -> str:
        """Return its name."""
        return "AWQ in 4 bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerTensor(PackedTensor):
    """Whole numbers of a few bits in 32-bit words, row by row, from the lowest bits on.

    compressed-tensors has ``(code - 2^(bits - 1) - zero) * scale``, MLX ``code * scale + bias``.
    """

    codes: StoredTensor
    """(N, K bits / 32), the last word of a row filled up."""
    scales: StoredTensor
    """(N, groups)."""
    biases: StoredTensor | None = None
    """(N, groups): MLX's."""
    zeros: StoredTensor | None = None
    """(N bits / 32, groups), packed by rows: compressed-tensors'."""
    groups: StoredTensor | None = None
    """The group of each input (K,), where it is written down."""
    bits: int
    group: int
    label: str

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Codes, scales, and what there is beside them."""
        others = (self.biases, self.zeros, self.groups)
        return (self.codes, self.scales, *(part for part in others if part is not None))

    @property
    def words(self) -> str:
        """Return its name and bits."""
        return f"{self.label} in {self.bits} bits"

    @property
    def kept_as(self) -> str | None:
        """Return the format of MLX's that has groups of 64."""
        if self.biases is None or self.group != 64:
            return None
        return {4: "q4", 8: "q8"}.get(self.bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp4Tensor(PackedTensor):
    """Four-bit floats, two a byte, the first in the low half, row by row (OCP Microscaling 1.0).

    MX FP4 has an exponent for 32 of them, NV FP4 an eight-bit float for 16.
    """

    codes: StoredTensor
    """(N, K / 2) bytes, of whatever type."""
    scales: StoredTensor
    """(N, K / group) bytes."""
    group: int
    total: StoredTensor | None = None
    """One number that all scales are divided by."""

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Codes, scales, the scale of all."""
        return (self.codes, self.scales, *(() if self.total is None else (self.total,)))

    @property
    def words(self) -> str:
        """Return its name."""
        return "MX FP4" if self.group == 32 else "NV FP4"

    @property
    def kept_as(self) -> str | None:
        """Return MLX's name of it."""
        if self.total is not None:
            return None
        return "mxfp4" if self.group == 32 else "nvfp4"
