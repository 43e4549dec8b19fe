"""Loading: tensor by tensor from safetensors, quantized as it arrives, nothing mapped.

The host never holds more than what is kept plus one tensor in its file's number format, with
what quantizing a megabyte of it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgetune.errors import UsageError
from edgetune.model import LocalModel, StoredTensor
from edgetune.settings.spec import EmbeddingPlace, HeadPlace, Placement, Quantization
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune_torch.int8 import Int8Matrix
from edgetune_torch.matrices import DenseMatrix, store
from edgetune_torch.pages import Files
from edgetune_torch.per_layer import PerLayerWeights
from edgetune_torch.placement import place_blocks
from edgetune_torch.row_formats import BlockRows, PlainRows, RowFormat
from edgetune_torch.sources import Checkpoint, dtype_of
from edgetune_torch.vocabulary import (
    Embedding,
    FileEmbedding,
    FileHead,
    HeadRows,
    Int8Head,
    ResidentEmbedding,
    ResidentHead,
)
from edgetune_torch.weights import Blocks, BlockWeights
from edgetune_torch.workspace import Workspace


@dataclass(slots=True, kw_only=True)
class Weights:
    """Every frozen tensor of a model, wherever it is. A tied head is the embedding itself."""

    device: torch.device
    embedding: Embedding
    head: HeadRows
    head_bias: Tensor | None
    positions: Tensor | None
    final_norm: Tensor | None
    final_norm_bias: Tensor | None
    embedding_norm: Tensor | None = None
    embedding_norm_bias: Tensor | None = None
    per_layer: PerLayerWeights | None = None
    streams: Mapping[str, DenseMatrix] = field(default_factory=dict)
    """Projections by which streams begin and end, by module."""
    blocks: Blocks
    workspace: Workspace
    held: ExitStack
    """Files and threads that are open as long as the weights are used."""

    @property
    def nbytes(self) -> int:
        """Bytes that stay on the device, scratch memory not counted."""
        others = (
            self.head_bias, self.positions, self.final_norm, self.final_norm_bias,
            self.embedding_norm, self.embedding_norm_bias,
        )  # fmt: skip
        small = sum(tensor.nbytes for tensor in others if tensor is not None)
        small += 0 if self.per_layer is None else self.per_layer.nbytes
        small += sum(matrix.nbytes for matrix in self.streams.values())
        return self.embedding.nbytes + self.head.nbytes + small + self.blocks.nbytes

    def close(self) -> None:
        """Give everything back."""
        self.blocks.close()
        self.head.close()
        self.workspace.clear()
        self.held.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placements:
    """Where the frozen weights live; the names are those of the plan's knobs."""

    blocks: Placement = "resident"
    embedding: EmbeddingPlace = "resident"
    head: HeadPlace = "resident"


class Loader:
    """Reads the weights of one model for one device."""

    def __init__(
        self,
        model: LocalModel,
        device: torch.device,
        quantization: Quantization,
        placements: Placements | None = None,
        check: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Prepare to read ``model``; nothing is read yet.

        ``check`` is called before each tensor and each product, and may raise.
        """
        self.model = model
        self.device = device
        self.placements = placements or Placements()
        if self.placements.blocks == "host" and device.type != "cuda":
            raise UsageError(
                "The weights of a CPU run are in host memory already: --placement disk or resident."
            )
        self._files = Files()
        self._source = Checkpoint(model, quantization, self._files, check)
        self._workspace = Workspace(device, check)
        self._reader = ThreadPoolExecutor(1, "edgetune-read-ahead")

    def load(self) -> Weights:
        """Read everything that is to be resident, and open what is streamed."""
        with ExitStack() as held:
            held.callback(self._files.close)
            held.callback(self._reader.shutdown)
            weights = self._load(held)
            weights.held = held.pop_all()
        return weights

    def _load(self, held: ExitStack) -> Weights:
        shape, final = self.model.shape, self.model.shape.final_norm
        first = shape.embedding_norm
        embedding = self._embedding()
        return Weights(
            device=self.device,
            embedding=embedding,
            head=self._head(embedding),
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
            blocks=place_blocks(
                self.placements.blocks,
                self._source,
                [self._small(layer) for layer in range(shape.layers)],
                self._workspace,
                self._reader,
            ),
            workspace=self._workspace,
            held=held,
        )

    def _embedding(self) -> Embedding:
        stored = self.model.tensors[f"{self.model.shape.embedding}.weight"]
        form = self._form(stored)
        if self.placements.embedding == "disk":
            self._source.verify(stored)
            return FileEmbedding(stored, form, self._files)
        return ResidentEmbedding(self._rows(stored), form)

    def _streams(self) -> dict[str, DenseMatrix]:
        rule, size = self.model.shape.altup, self.model.shape.hidden_size
        modules = () if rule is None else (*rule.entries, *rule.exits)
        return {
            module: DenseMatrix(
                (size, size), {"values": self._read(f"{module}.weight")}, self._workspace
            )
            for module in modules
        }

    def _per_layer(self) -> PerLayerWeights | None:
        """Return what makes the inputs of single layers; the table stays in its file."""
        shape = self.model.shape
        if shape.per_layer is None:
            return None
        stored = self.model.tensors[f"{shape.per_layer.table}.weight"]
        self._source.verify(stored)
        return PerLayerWeights(
            table=FileEmbedding(stored, self._form(stored), self._files),
            projection=self._read(f"{shape.per_layer.projection}.weight"),
            norm=self._read(f"{shape.per_layer.norm.module}.weight"),
            workspace=self._workspace,
            rows=shape.per_layer.rows,
        )

    def _head(self, embedding: Embedding) -> HeadRows:
        shape = self.model.shape
        name = shape.head_tensor
        stored, size = self.model.tensors[name], (shape.vocabulary, shape.hidden_size)
        form = self._form(stored)
        match self.placements.head:
            case "disk":
                if not (shape.tied and isinstance(embedding, FileEmbedding)):
                    self._source.verify(stored)
                return FileHead(stored, form, self._files, self._reader, self._workspace)
            case "int8":
                matrix = store(self._read(name), "int8", self._workspace)
                assert isinstance(matrix, Int8Matrix)
                return Int8Head(matrix, self._workspace)
            case "resident":
                if shape.tied and isinstance(embedding, ResidentEmbedding):
                    return ResidentHead(embedding.weight, form, size, self._workspace, shared=True)
                return ResidentHead(self._rows(stored), form, size, self._workspace, shared=False)

    def _form(self, stored: StoredTensor) -> RowFormat:
        """Return how rows of embedding or head are stored."""
        if isinstance(stored, GgufTensor) and stored.in_blocks:
            return BlockRows.of(stored.shape[1], stored.dtype, self._workspace)
        return PlainRows(stored.shape[1], dtype_of(stored))

    def _rows(self, stored: StoredTensor) -> Tensor:
        """Return all rows of embedding or head, as they are stored."""
        packed = isinstance(stored, GgufTensor) and stored.in_blocks
        read = self._source.packed if packed else self._source.tensor
        return read(stored).to(self.device)

    def _small(self, layer: int) -> BlockWeights:
        """Return the norms, the biases and the mixer's own tensors of a block."""
        shape, block = self.model.shape, BlockWeights()
        prefix = shape.block(layer)
        for norm in shape.blocks[layer].norms:
            if not norm.plain:
                block.norms[norm.role] = self._read(f"{prefix}{norm.module}.weight")
            if norm.bias:
                block.norm_biases[norm.role] = self._read(f"{prefix}{norm.module}.bias")
        for tensor in shape.blocks[layer].mixer_tensors:
            block.mixer[tensor.role] = self._read(f"{prefix}{tensor.name}")
        for linear in shape.blocks[layer].matrices:
            if linear.bias:
                block.biases[linear.key] = self._read(f"{prefix}{linear.module}.bias")
        for each in shape.blocks[layer].routing_tensors:
            block.routing[each.role] = self._read(f"{prefix}{each.name}")
        return block

    def _read(self, name: str) -> Tensor:
        return self._source.tensor(self.model.tensors[name]).to(self.device)
