"""How a frozen matrix is stored, and the products with it.

K inputs, N outputs. A matrix is a mapping of arrays (its parts) and a packing that says how they
become numbers, so that the parts can be handed to a compiled function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import mlx.core as mx

from edgetune.errors import UsageError
from edgetune_mlx.precision import multiplies_quantized
from edgetune_mlx.unpack import unpack_affine, unpack_float

Parts = Mapping[str, mx.array]


@dataclass(frozen=True, slots=True)
class Gather:
    """Which rows go through which of ``count`` matrices: the latter rise; None: every row once."""

    count: int
    matrices: mx.array
    rows: mx.array | None


PACKED_AT_ONCE: Final = 1 << 14
"""Numbers that are quantized at a time without a kernel for it."""


class Packing(ABC):
    """One way to store a matrix (N, K)."""

    @abstractmethod
    def pack(self, values: mx.array) -> dict[str, mx.array]:
        """Return the parts that stand for ``values`` (N, K)."""

    @abstractmethod
    def dense(self, parts: Parts, dtype: mx.Dtype) -> mx.array:
        """Return the matrix as plain numbers (N, K)."""

    def makes_numbers(self, parts: Parts, dtype: mx.Dtype) -> bool:  # noqa: ARG002
        """Return whether a product with numbers of a type makes a matrix to multiply with."""
        return not multiplies_quantized()

    def rows(self, parts: Parts, indices: mx.array, dtype: mx.Dtype) -> mx.array:
        """Return rows (..., K) of the matrix, for indices (...)."""
        return self.dense({name: part[indices] for name, part in parts.items()}, dtype)

    def times(self, x: mx.array, parts: Parts) -> mx.array:
        """Return ``x W^T`` (..., N) for x (..., K)."""
        return x @ self.dense(parts, x.dtype).T

    def back(self, grad: mx.array, parts: Parts) -> mx.array:
        """Return ``grad W`` (..., K) for grad (..., N)."""
        return grad @ self.dense(parts, grad.dtype)

    def gathered(self, x: mx.array, parts: Parts, gather: Gather, *, transpose: bool) -> mx.array:
        """Return rows of x, each times one of several matrices that lie one below the other."""
        # a processor gathers in float32 alone (MLX 0.32)
        kind = x.dtype if multiplies_quantized() else mx.float32
        stack = _stacked(self.dense(parts, kind), gather.count)
        stack = stack.swapaxes(1, 2) if transpose else stack
        found = mx.gather_mm(
            x[:, None].astype(kind), stack, gather.rows, gather.matrices,
            sorted_indices=gather.rows is None,
        )  # fmt: skip
        return found[:, 0].astype(x.dtype)


class Plain(Packing):
    """The numbers of the checkpoint."""

    def pack(self, values: mx.array) -> dict[str, mx.array]:
        """Return the values themselves."""
        return {"values": values}

    def dense(self, parts: Parts, dtype: mx.Dtype) -> mx.array:
        """Return the values, converted if their type differs."""
        return parts["values"].astype(dtype)

    def makes_numbers(self, parts: Parts, dtype: mx.Dtype) -> bool:
        """Return whether they are converted."""
        return bool(parts["values"].dtype != dtype)


def _stacked(rows: mx.array, count: int) -> mx.array:
    """Return rows of ``count`` matrices as (count, rows of one, columns)."""
    return rows.reshape(count, -1, rows.shape[-1])


def _joined(pieces: Sequence[mx.array]) -> mx.array:
    return pieces[0] if len(pieces) == 1 else mx.concatenate(list(pieces))


@dataclass(frozen=True, slots=True)
class Quantized(Packing):
    """One of MLX's formats: ``bits`` a number, and scales for every ``group`` of inputs."""

    mode: str
    group: int
    bits: int

    def pack(self, values: mx.array) -> dict[str, mx.array]:
        """Return codes, scales and, for affine formats, biases.

        Raises:
            UsageError: if the inputs are not whole groups.
        """
        if values.shape[-1] % self.group:
            raise UsageError(
                f"This model has a matrix with {values.shape[-1]} inputs; {self.bits} bits on MLX "
                f"need a multiple of {self.group}. --quantization none works."
            )
        rows = len(values)
        if self.mode != "affine" and not multiplies_quantized():
            # a processor has no kernel for it: every number is compared with every code at once
            rows = max(1, PACKED_AT_ONCE // values.shape[-1])
        pieces = [
            self._packed(values[start : start + rows]) for start in range(0, len(values), rows)
        ]
        found = map(_joined, zip(*pieces, strict=True))
        return dict(zip(("codes", "scales", "biases"), found, strict=False))

    def _packed(self, values: mx.array) -> Sequence[mx.array]:
        found: Sequence[mx.array] = mx.quantize(values, self.group, self.bits, self.mode)
        mx.eval(*found)
        return found

    def dense(self, parts: Parts, dtype: mx.Dtype) -> mx.array:
        """Return the dequantized values."""
        codes, scales, biases = parts["codes"], parts["scales"], parts.get("biases")
        if multiplies_quantized():
            found = mx.dequantize(codes, scales, biases, self.group, self.bits, self.mode)
        elif biases is None:
            found = unpack_float(codes, scales, group=self.group, dtype=dtype)
        else:
            found = unpack_affine(codes, scales, biases, group=self.group, bits=self.bits)
        return found.astype(dtype)

    def times(self, x: mx.array, parts: Parts) -> mx.array:
        """Return ``x W^T``, without a dense copy where the machine can."""
        if multiplies_quantized():
            return self._multiply(x, parts, transpose=True)
        return Packing.times(self, x, parts)

    def back(self, grad: mx.array, parts: Parts) -> mx.array:
        """Return ``grad W``, without a dense copy where the machine can."""
        if multiplies_quantized():
            return self._multiply(grad, parts, transpose=False)
        return Packing.back(self, grad, parts)

    def gathered(self, x: mx.array, parts: Parts, gather: Gather, *, transpose: bool) -> mx.array:
        """Return rows of x times one of several matrices, without a dense copy where it can be."""
        if not multiplies_quantized():
            return Packing.gathered(self, x, parts, gather, transpose=transpose)
        codes, *scales = (_stacked(part, gather.count) for part in parts.values())
        if self.mode == "affine":
            scales = [part.astype(x.dtype) for part in scales]
        return mx.gather_qmm(
            x[:, None], codes, scales[0], scales[1] if scales[1:] else None,
            gather.rows, gather.matrices, transpose, self.group, self.bits, self.mode,
            sorted_indices=gather.rows is None,
        )[:, 0]  # fmt: skip

    def _multiply(self, x: mx.array, parts: Parts, *, transpose: bool) -> mx.array:
        # scales of another float type than x would promote the result
        scales, biases = parts["scales"], parts.get("biases")
        if biases is not None:
            scales, biases = scales.astype(x.dtype), biases.astype(x.dtype)
        return mx.quantized_matmul(
            x, parts["codes"], scales, biases, transpose, self.group, self.bits, self.mode
        )


PACKINGS: Final[Mapping[str, Packing]] = {
    "none": Plain(),
    "gguf": Plain(),  # what a file does not have in blocks
    "q8": Quantized("affine", 64, 8),
    "q4": Quantized("affine", 64, 4),
    "mxfp4": Quantized("mxfp4", 32, 4),
    "nvfp4": Quantized("nvfp4", 16, 4),
}


class Sequencer:
    """Keeps products that make a matrix to multiply with in turn.

    MLX begins with what waits for nothing: it would make the matrices of many products at once.
    Here each is made when the product before it is done, whose result is needed by then anyway.
    The first one on the way back follows the last but one on the way forward: the last is often
    not computed again.
    """

    def __init__(self) -> None:
        """Begin with no product."""
        self._forward: list[mx.array] = []
        self._back: mx.array | None = None

    def before_next(self) -> list[mx.array]:
        """Return what the next product on the way forward waits for."""
        return self._forward[-1:]

    def done(self, y: mx.array) -> mx.array:
        """Return the result of a product on the way forward, once it is noted."""
        # what waits holds on to one number: y itself would be kept, or not be built upon in place
        y, mark = mx.depends([y, mx.zeros(1)], [y])
        self._forward = [*self._forward[-1:], mark]
        return y

    def before_next_back(self) -> list[mx.array]:
        """Return what the next product on the way back waits for."""
        return self._forward[-2:-1] if self._back is None else [self._back]

    def done_back(self, grad: mx.array) -> mx.array:
        """Return the result of a product on the way back, once it is noted."""
        grad, self._back = mx.depends([grad, mx.zeros(1)], [grad])
        return grad

    def forget(self) -> None:
        """Let go of what products to come would wait for: there are none."""
        self._forward, self._back = [], None


class GraphInMaking:
    """A graph of blocks while it is made, forward and back, as a context that may be nested.

    The graph has functions for the way back, they have the sequencers, and these a result in it:
    what is never evaluated would hold itself. So the outermost context lets sequencers forget.
    """

    def __init__(self) -> None:
        """Begin outside of any graph."""
        self._depth = 0
        self._sequencers: list[Sequencer] = []

    def sequencer(self) -> Sequencer:
        """Return a new one for a block of the graph."""
        self._sequencers.append(Sequencer())
        return self._sequencers[-1]

    def __enter__(self) -> GraphInMaking:
        """Make a graph, or more of one."""
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        """End, whether it is whole or failed."""
        self._depth -= 1
        if not self._depth:
            for sequencer in self._sequencers:
                sequencer.forget()
            self._sequencers.clear()


@dataclass(frozen=True, slots=True)
class Matrix:
    """A frozen matrix (N, K)."""

    packing: Packing
    parts: Parts
    sequencer: Sequencer | None = None

    def serialized(self, sequencer: Sequencer) -> Matrix:
        """Return the same matrix, whose products keep to an order."""
        return replace(self, sequencer=sequencer)

    def dense(self, dtype: mx.Dtype) -> mx.array:
        """Return the matrix as plain numbers (N, K)."""
        return self.packing.dense(self.parts, dtype)

    def rows(self, indices: mx.array, dtype: mx.Dtype) -> mx.array:
        """Return rows (..., K) for indices (...)."""
        return self.packing.rows(self.parts, indices, dtype)

    def times(self, x: mx.array) -> mx.array:
        """Return ``x W^T`` (..., N) for x (..., K)."""
        sequencer = self.sequencer
        if sequencer is None or not self.packing.makes_numbers(self.parts, x.dtype):
            return self.packing.times(x, self.parts)
        y = self.packing.times(x, self._behind([x, *sequencer.before_next()]))
        return sequencer.done(y)

    def back(self, grad: mx.array) -> mx.array:
        """Return ``grad W`` (..., K) for grad (..., N)."""
        sequencer = self.sequencer
        if sequencer is None or not self.packing.makes_numbers(self.parts, grad.dtype):
            return self.packing.back(grad, self.parts)
        found = self.packing.back(grad, self._behind([grad, *sequencer.before_next_back()]))
        return sequencer.done_back(found)

    def gathered(self, x: mx.array, gather: Gather) -> mx.array:
        """Return rows (n, N) of x (rows, K), each through its own of the matrices."""
        sequencer = self.sequencer
        if sequencer is None or not self.packing.makes_numbers(self.parts, x.dtype):
            return self.packing.gathered(x, self.parts, gather, transpose=True)
        parts = self._behind([x, *sequencer.before_next()])
        return sequencer.done(self.packing.gathered(x, parts, gather, transpose=True))

    def gathered_back(self, grad: mx.array, gather: Gather) -> mx.array:
        """Return the gradients (n, K) of rows of which grad has those of the products."""
        sequencer = self.sequencer
        if sequencer is None or not self.packing.makes_numbers(self.parts, grad.dtype):
            return self.packing.gathered(grad, self.parts, gather, transpose=False)
        parts = self._behind([grad, *sequencer.before_next_back()])
        return sequencer.done_back(self.packing.gathered(grad, parts, gather, transpose=False))

    def _behind(self, others: list[mx.array]) -> Parts:
        """Return the parts, to be read when other arrays are there."""
        return dict(zip(self.parts, mx.depends(list(self.parts.values()), others), strict=True))


def packing_of(quantization: str) -> Packing:
    """Return a storage format.

    Raises:
        UsageError: if this backend does not have it.
    """
    if quantization not in PACKINGS:
        supported = ", ".join(PACKINGS)
        raise UsageError(f"Unsupported quantization {quantization!r} on mlx: it has {supported}.")
    return PACKINGS[quantization]
