"""Loading: tensor by tensor from safetensors, quantized as it arrives, nothing mapped.

The host never holds more than what is kept plus one tensor in its file's number format.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.model import LocalModel, StoredTensor
from edgetune.shape import Linear
from edgetune_torch.matrices import Matrix, store

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(slots=True)
class BlockWeights:
    """The frozen tensors of one block, by role."""

    matrices: dict[str, Matrix] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    norm_biases: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Weights:
    """Every frozen tensor of a model. A tied head is the embedding itself."""

    embedding: Tensor
    head: Tensor
    head_bias: Tensor | None
    positions: Tensor | None
    final_norm: Tensor
    final_norm_bias: Tensor | None
    blocks: list[BlockWeights]

    @property
    def nbytes(self) -> int:
        """Bytes of everything, tied tensors counted once."""
        outer = {id(x): x.nbytes for x in (self.embedding, self.head, self.final_norm)}
        blocks = sum(matrix.nbytes for block in self.blocks for matrix in block.matrices.values())
        return sum(outer.values()) + blocks


class Loader:
    """Reads the tensors of one model onto one device."""

    def __init__(self, model: LocalModel, device: torch.device, quantization: str) -> None:
        """Prepare to read ``model``; nothing is read yet."""
        self.model = model
        self.device = device
        self.quantization = quantization

    def load(self) -> Weights:
        """Read everything."""
        shape = self.model.shape
        embedding = self._read(f"{shape.embedding}.weight")
        final = shape.final_norm
        return Weights(
            embedding=embedding,
            head=embedding if shape.tied else self._read(f"{shape.head}.weight"),
            head_bias=self._read(f"{shape.head}.bias") if shape.head_bias else None,
            positions=self._read(f"{shape.positions}.weight") if shape.positions else None,
            final_norm=self._read(f"{final.module}.weight"),
            final_norm_bias=self._read(f"{final.module}.bias") if final.bias else None,
            blocks=[self._block(layer) for layer in range(shape.layers)],
        )

    def _block(self, layer: int) -> BlockWeights:
        shape, block = self.model.shape, BlockWeights()
        prefix = shape.block(layer)
        for norm in shape.norms:
            block.norms[norm.role] = self._read(f"{prefix}{norm.module}.weight")
            if norm.bias:
                block.norm_biases[norm.role] = self._read(f"{prefix}{norm.module}.bias")
        for linear in shape.linears:
            block.matrices[linear.role] = self._matrix(f"{prefix}{linear.module}.weight", linear)
            if linear.bias:
                block.biases[linear.role] = self._read(f"{prefix}{linear.module}.bias")
        return block

    def _matrix(self, name: str, linear: Linear) -> Matrix:
        values = self._read(name)
        if linear.transposed:
            values = values.T.contiguous()
        return store(values, self.quantization)

    def _read(self, name: str) -> Tensor:
        return read_tensor(self.model.tensors[name]).to(self.device)


def read_tensor(stored: StoredTensor) -> Tensor:
    """Return one tensor of a safetensors file, read into memory of its own.

    Raises:
        ModelError: if its number format is not a floating one, or the file ends early.
    """
    if stored.dtype not in DTYPES:
        raise ModelError(
            f"{stored.file} holds a tensor of type {stored.dtype}; "
            f"supported: {', '.join(DTYPES)}. Use a checkpoint that is not quantized."
        )
    values = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    buffer = memoryview(values.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.start)
        filled = 0
        while filled < len(buffer):
            count = file.readinto(buffer[filled:])
            if not count:
                raise ModelError(f"{stored.file} ends early: it is damaged; copy it again.")
            filled += count
    return values
