"""Bytes while MLX opens a model: each tensor is there as its file has it until it is packed.

N outputs and K inputs of a matrix.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from edgetune.memory.ledger import Ledger
from edgetune.shape import ModelShape
from edgetune.storage import (
    AFFINE,
    BYTES,
    FLOAT32_BYTES,
    GROUPS,
    QUANTIZED_OUTER,
    matrix_bytes,
    small_bytes,
)

PACKED_AT_ONCE = 1 << 14
"""Numbers that are quantized at a time without a kernel for it."""

CODES = 16
"""Numbers that 4 bits stand for: each number is compared with all of them."""


@dataclass(frozen=True, slots=True)
class Loading:
    """A model on its way into memory; ``unpacks``: quantized matrices have no kernels."""

    shape: ModelShape
    quantization: str
    unpacks: bool
    ledger: Ledger = field(default_factory=Ledger)

    @classmethod
    def peak(cls, shape: ModelShape, quantization: str, *, streamed: bool, unpacks: bool) -> int:
        """Return the most bytes of frozen tensors that there are at one time.

        Streamed blocks come first, one by one, where they are written to disk.
        """
        layers, outer = range(shape.layers), cls(shape, quantization, unpacks)
        outer._read_outer()
        if not streamed:
            for layer in layers:
                outer._read_block(layer)
            return outer.ledger.peak
        if quantization == "none" and shape.published is None:
            return outer.ledger.peak
        peaks = [outer.ledger.peak]
        for layer in set(shape.alike):
            block = cls(shape, quantization, unpacks)
            block._read_block(layer)
            peaks.append(block.ledger.peak)
        return max(peaks)

    def _read_outer(self) -> None:
        for tensor in self.shape.outer_tensors():
            if tensor.kind in {"embedding", "head"}:
                self._read(*tensor.shape, packed=self.quantization in QUANTIZED_OUTER)
            elif tensor.kind != "table":  # rows of it are read
                self.ledger.alloc(tensor.size * self._stored)

    def _read_block(self, layer: int) -> None:
        self.ledger.alloc(small_bytes(self.shape, layer))
        own: Counter[tuple[str, int, int, bool]] = Counter()
        for linear in self.shape.blocks[layer].matrices:
            if linear.expert is None:
                self._read(linear.outputs, linear.inputs, transposed=linear.transposed)
            else:
                own[str(linear.role), linear.outputs, linear.inputs, linear.transposed] += 1
        for (_, outputs, inputs, transposed), count in own.items():
            self._read(outputs, inputs, transposed=transposed, count=count)

    def _read(
        self, outputs: int, inputs: int, *,
        packed: bool = True, transposed: bool = False, count: int = 1,
    ) -> None:  # fmt: skip
        """Read a matrix, or several of one size that lie in one below the other."""
        published, quantization = self.shape.published, self.quantization if packed else "none"
        stored = outputs * inputs * self._stored
        unpacking = 0 if published is None else stored + published.unpacking_bytes
        turned = stored if transposed else 0
        kept = matrix_bytes(outputs, inputs, quantization, self._stored)
        if count > 1:
            self.ledger.alloc(count * kept)  # each is put there
        beside = 0 if quantization == "none" else self._packing(outputs, inputs, kept)
        self.ledger.transient(stored, max(unpacking, turned, beside))
        if count == 1:
            self.ledger.alloc(kept)

    def _packing(self, outputs: int, inputs: int, kept: int) -> int:
        """Return what quantizing a matrix takes beside it.

        Without a kernel some rows at a time are compared with all codes, and put together at last.
        """
        if self.quantization in AFFINE or not self.unpacks:
            return kept
        from edgetune.memory.lazy.evaluation import AHEAD

        numbers = min(outputs, max(1, PACKED_AT_ONCE // inputs)) * inputs
        width = FLOAT32_BYTES if self.quantization == "nvfp4" else self._stored
        compared = (CODES + 2) * width * numbers  # with scaled and absolute numbers
        scales = AHEAD * FLOAT32_BYTES * (numbers // GROUPS[self.quantization])
        return kept + max(kept, compared + FLOAT32_BYTES * numbers + scales)

    @property
    def _stored(self) -> int:
        return BYTES[self.shape.dtype]
