"""Loading: tensor by tensor from safetensors, quantized as it arrives, nothing mapped.

Only what is kept plus one tensor in its file's number format is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.files import unwritable
from edgetune.model import LocalModel, StoredTensor
from edgetune.owned import ScratchFolder
from edgetune.shape import Linear
from edgetune.tensors.finite import require_finite
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.packed import PackedTensor
from edgetune.tensors.packed.values import kept_parts, packed_values
from edgetune.tensors.reader import read_tensor as stored_values
from edgetune.tensors.writer import Outgoing, write_scratch
from edgetune_mlx.gguf import GgufPacking, read_blocks
from edgetune_mlx.matrices import PACKINGS, Matrix, Packing
from edgetune_mlx.per_layer import PerLayerWeights, RowsOnDisk
from edgetune_mlx.precision import DTYPES

_BITS: Final = {"float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16}
"""numpy has no bfloat16: tensors are read as integers of the same width."""

_INTEGERS: Final = {"float32": mx.uint32, "float16": mx.uint16, "bfloat16": mx.uint16}

ELSEWHERE: Final = "set TMPDIR to a folder elsewhere"


@dataclass(slots=True)
class BlockWeights:
    """The frozen tensors of one block, by role.

    A matrix called ``experts.`` and a role has those of all experts, one below the other.
    """

    matrices: dict[str, Matrix] = field(default_factory=dict)
    biases: dict[str, mx.array] = field(default_factory=dict)
    norms: dict[str, mx.array] = field(default_factory=dict)
    norm_biases: dict[str, mx.array] = field(default_factory=dict)
    mixer: dict[str, mx.array] = field(default_factory=dict)
    routing: dict[str, mx.array] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Weights:
    """Every frozen tensor of a model. A tied head is the embedding itself."""

    embedding: Matrix
    head: Matrix
    head_bias: mx.array | None
    positions: mx.array | None
    final_norm: mx.array | None
    final_norm_bias: mx.array | None
    embedding_norm: mx.array | None = None
    embedding_norm_bias: mx.array | None = None
    per_layer: PerLayerWeights | None = None
    streams: Mapping[str, mx.array] = field(default_factory=dict)
    """Projections by which streams begin and end, by module."""
    blocks: Sequence[BlockWeights]
    """Read when asked for, each time again, if the blocks live on disk."""


class Loader:
    """Reads the tensors of one model."""

    def __init__(self, model: LocalModel, packing: Packing) -> None:
        """Prepare to read ``model``; nothing is read yet."""
        self.model = model
        self.packing = packing

    def load(self, blocks: Sequence[BlockWeights] | None = None) -> Weights:
        """Read everything, or everything but the given blocks."""
        shape = self.model.shape
        embedding = self._matrix(f"{shape.embedding}.weight")
        final, first = shape.final_norm, shape.embedding_norm
        return Weights(
            embedding=embedding,
            head=embedding if shape.tied else self._matrix(f"{shape.head}.weight"),
            head_bias=self._read(f"{shape.head}.bias") if shape.head_bias else None,
            positions=self._read(f"{shape.positions}.weight") if shape.positions else None,
            final_norm=None if final.plain else self._read(f"{final.module}.weight"),
            final_norm_bias=self._read(f"{final.module}.bias") if final.bias else None,
            embedding_norm=self._read(f"{first.module}.weight") if first else None,
            embedding_norm_bias=self._read(f"{first.module}.bias")
            if first is not None and first.bias
            else None,
            per_layer=self._per_layer(),
            streams=self._streams(),
            blocks=blocks or [self.block(layer) for layer in range(shape.layers)],
        )

    def _streams(self) -> dict[str, mx.array]:
        rule = self.model.shape.altup
        modules = () if rule is None else (*rule.entries, *rule.exits)
        return {module: self._read(f"{module}.weight") for module in modules}

    def _per_layer(self) -> PerLayerWeights | None:
        """Return what makes the inputs of single layers; the table stays in its file."""
        own = self.model.shape.per_layer
        if own is None:
            return None
        return PerLayerWeights(
            table=RowsOnDisk(self.model.tensors[f"{own.table}.weight"]),
            projection=self._read(f"{own.projection}.weight"),
            norm=self._read(f"{own.norm.module}.weight"),
        )

    def block(self, layer: int) -> BlockWeights:
        """Read one block."""
        shape, block = self.model.shape, BlockWeights()
        prefix = shape.block(layer)
        for norm in shape.blocks[layer].norms:
            if not norm.plain:
                block.norms[norm.role] = self._read(f"{prefix}{norm.module}.weight")
            if norm.bias:
                block.norm_biases[norm.role] = self._read(f"{prefix}{norm.module}.bias")
        for tensor in shape.blocks[layer].mixer_tensors:
            block.mixer[tensor.role] = self._read(f"{prefix}{tensor.name}")
        for linear in shape.blocks[layer].linears:
            name = f"{prefix}{linear.module}"
            block.matrices[linear.role] = self._matrix(f"{name}.weight", linear)
            if linear.bias:
                block.biases[linear.role] = self._read(f"{name}.bias")
        experts = shape.blocks[layer].experts
        if experts is not None:
            for each in experts.tensors:
                block.routing[each.role] = self._read(f"{prefix}{each.name}")
            for role, module in experts.projections:
                names = [f"{prefix}{module.format(i)}" for i in range(experts.number)]
                linear = next(x for x in shape.blocks[layer].expert_linears if x.role == role)
                block.matrices[f"experts.{role}"] = self._stack(names, linear)
                if experts.biased:
                    biases = [self._read(f"{name}.bias") for name in names]
                    block.biases[f"experts.{role}"] = mx.stack(biases)
        return block

    def _stack(self, names: Sequence[str], linear: Linear) -> Matrix:
        """Read matrices of one shape into one, each to its rows as soon as it is there."""
        whole: dict[str, mx.array] = {}
        packing = self.packing
        for number, name in enumerate(names):
            one = self._matrix(f"{name}.weight", linear)
            packing = one.packing
            for part, values in one.parts.items():
                rows = len(values)
                if not number:
                    whole[part] = mx.zeros((len(names) * rows, *values.shape[1:]), values.dtype)
                whole[part][number * rows : (number + 1) * rows] = values
            mx.eval(whole)
        return Matrix(packing, whole)

    def _matrix(self, name: str, linear: Linear | None = None) -> Matrix:
        stored = self.model.tensors[name]
        if isinstance(stored, GgufTensor) and stored.in_blocks:
            packing = GgufPacking.of(stored.dtype, stored.columns)
            return Matrix(packing, packing.pack(read_blocks(stored)))
        if (kept := _kept(stored, self.packing)) is not None:
            return Matrix(self.packing, kept)
        values = self._read(name)
        if linear is not None and linear.transposed:
            values = mx.contiguous(values.T)
        parts = self.packing.pack(values)
        mx.eval(parts)
        return Matrix(self.packing, parts)

    def _read(self, name: str) -> mx.array:
        return read_tensor(self.model.tensors[name])


def read_tensor(stored: StoredTensor) -> mx.array:
    """Return one tensor as plain numbers, read into memory of its own.

    Raises:
        ModelError: if its number format is not a floating one, values are not finite, or the file
            ends early.
    """
    if isinstance(stored, GgufTensor):
        return _of_gguf(stored)
    if isinstance(stored, PackedTensor):
        return _array(packed_values(stored))
    if stored.dtype not in DTYPES:
        raise ModelError(
            f"{stored.file} holds a tensor of type {stored.dtype}; "
            f"supported: {', '.join(DTYPES)}. Use a checkpoint that is not quantized."
        )
    values = mx.zeros(stored.shape, _INTEGERS[stored.dtype])
    mx.eval(values)
    # its own memory: numbers read elsewhere first would be there twice
    numbers = np.array(values, copy=False).reshape(-1).view(np.uint8)
    buffer = numbers.data
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.start)
        while buffer:
            count = file.readinto(buffer)
            if not count:
                raise ModelError(f"{stored.file} ends early: it is damaged; copy it again.")
            buffer = buffer[count:]
    require_finite(stored, numbers.data)
    return values.view(DTYPES[stored.dtype])


def _kept(stored: StoredTensor, packing: Packing) -> dict[str, mx.array] | None:
    """Return the parts of a matrix in a format, where the file has the same codes."""
    named = [name for name, known in PACKINGS.items() if known == packing]
    if not isinstance(stored, PackedTensor):
        return None
    parts = kept_parts(stored, named[0])
    return None if parts is None else {name: _array(values) for name, values in parts.items()}


def _array(values: NDArray[Any]) -> mx.array:
    """Return numbers as MLX has them; numpy has no bfloat16 that it takes."""
    name = values.dtype.name
    if values.dtype.kind in "iu":
        return mx.array(values)
    turned = not values.flags.c_contiguous and values.T.flags.c_contiguous
    found = mx.array((values.T if turned else values).view(_BITS[name])).view(DTYPES[name])
    return found.T if turned else found


def _of_gguf(stored: GgufTensor) -> mx.array:
    if stored.in_blocks:
        return GgufPacking.of(stored.dtype, stored.columns).dense(
            {"rows": read_blocks(stored)}, mx.float32
        )
    values = stored_values(stored)
    bits = np.asarray(values, order="C").view(_BITS[values.dtype.name])
    require_finite(replace(stored, dtype=values.dtype.name), bits.reshape(-1).view(np.uint8).data)
    return mx.array(bits).view(DTYPES[values.dtype.name])


def scratch_folder() -> ScratchFolder:
    """Return a folder for what is streamed.

    Raises:
        DiskError: if there is no place for it.
    """
    try:
        return ScratchFolder()
    except OSError as error:
        place = Path(error.filename or "TMPDIR").parent
        raise unwritable("What is streamed", place, error, ELSEWHERE) from None


def save_arrays(file: Path, arrays: Mapping[str, mx.array]) -> None:
    """Write arrays that :func:`load_arrays` reads back; none is copied.

    Raises:
        DiskError: if the disk has no room.
    """
    try:
        write_scratch(file, [Outgoing.of(name, _numpy(x)) for name, x in arrays.items()], "mlx")
    except OSError as error:
        raise unwritable("What is streamed", file.parent, error, ELSEWHERE) from None


def _numpy(x: mx.array) -> NDArray[Any]:
    """Return an array's own memory; numpy has no bfloat16 of its own."""
    mx.eval(x)
    if x.dtype == mx.bfloat16:
        return np.asarray(x.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(x)


def load_arrays(file: Path) -> dict[str, mx.array]:
    """Return the arrays of a file that this backend wrote; each is read when it is evaluated."""
    found = mx.load(str(file))
    assert isinstance(found, dict)
    return found
