"""An opened model whose tensors have shapes but no values, for dry runs.

Everything that would be read from a file is empty; everything else is the engine's own. On the device
``meta`` it is what a card computes, whether or not there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn import Parameter

from edgetune.choice import Choice
from edgetune.methods.adapted import Adapted
from edgetune.model.gguf import column_order
from edgetune.shape import BlockShape, ModelShape
from edgetune.storage import FILE_FORMAT, moved_in_files
from edgetune.tensors.gguf.types import BY_NAME, FLOATS, QUANTIZED
from edgetune_torch.checkpoints import Checkpoints, KeptCheckpoints
from edgetune_torch.decoder import Decoder
from edgetune_torch.dynamic_map import decode_blocks, encode_blocks
from edgetune_torch.engine import Engine
from edgetune_torch.gguf import unpack
from edgetune_torch.int8 import Int8Matrix
from edgetune_torch.layout import Layout, StoredAs
from edgetune_torch.load import Weights
from edgetune_torch.loss import Head
from edgetune_torch.matrices import DenseMatrix, store
from edgetune_torch.opening import DTYPES
from edgetune_torch.per_layer import PerLayerWeights
from edgetune_torch.row_formats import BlockRows, PlainRows, RowFormat
from edgetune_torch.streaming import Slot, StreamedBlocks
from edgetune_torch.vocabulary import (
    HeadRows,
    Int8Head,
    ResidentEmbedding,
    ResidentHead,
    Slice,
)
from edgetune_torch.weights import Blocks, BlockWeights, ResidentBlocks
from edgetune_torch.workspace import Workspace

CPU = torch.device("cpu")


class FakeSource:
    """Blocks of some layouts that are never read."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        """Say of every block how it lies."""
        self._layouts = layouts

    def layout(self, layer: int) -> Layout:
        """Return the layout."""
        return self._layouts[layer]

    def read(self, layer: int, buffer: Tensor) -> None:
        """Leave the buffer as it is."""


class FakeSlot(Slot):
    """A slot that every block is in at once."""

    def _begin(self, layer: int) -> None: ...

    def _finish(self) -> None: ...

    def release(self) -> None:
        """Do nothing."""


class FakeEmbedding:
    """An embedding of which nothing is on the device."""

    nbytes = 0

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        """Return rows of this width and type."""
        self.width = width
        self.dtype = dtype

    def rows(self, tokens: Tensor) -> Tensor:
        """Return rows (..., D) of tokens (...)."""
        return torch.empty(*tokens.shape, self.width, dtype=self.dtype, device=tokens.device)


class FakeHead(HeadRows):
    """A head that is read through two buffers of one slice each."""

    streamed = True

    def __init__(self, shape: tuple[int, int], form: RowFormat, workspace: Workspace) -> None:
        """Allocate the buffers, which are a host's; the rows themselves are nowhere."""
        super().__init__(shape, workspace)
        self.form = form
        with CPU:
            self._buffers = [form.empty(self.height) for _ in range(2)]

    def slices(self, dtype: torch.dtype) -> Iterator[Slice]:
        """Yield all rows, whose values nobody needs."""
        for span in self._spans():
            rows = self._buffers[0][: span.stop - span.start].to(self.workspace.device)
            yield span, self.form.multiplied(rows, dtype, self.workspace)
            del rows  # as FileHead does

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)


class PassingCheckpoints(Checkpoints):
    """Checkpoints that leave the device and come back as new tensors."""

    def __init__(self, device: torch.device) -> None:
        """Keep nothing yet of what is on a device."""
        self.device = device
        self._kept: list[tuple[torch.Size, torch.dtype]] = []

    def put(self, x: Tensor) -> None:
        """Remember what x looked like."""
        self._kept.append((x.shape, x.dtype))

    def take(self) -> Tensor:
        """Return an empty tensor like the newest."""
        shape, dtype = self._kept.pop()
        return torch.empty(shape, dtype=dtype, device=self.device)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def warm_up(quantization: str) -> None:
    """Fill the tables that are computed once a process: they must be real."""
    for signed in (True, False):
        codes, scales = torch.zeros(64, dtype=torch.uint8), torch.zeros(1)
        encode_blocks(
            decode_blocks(codes, scales, 64, signed=signed), codes, scales, 64, signed=signed
        )
    if quantization == FILE_FORMAT:
        for kind in map(BY_NAME.__getitem__, QUANTIZED):
            out = torch.empty(1, kind.block)
            unpack(kind, torch.zeros(1, kind.nbytes, dtype=torch.uint8), out, Workspace(out.device))
        return
    store(torch.zeros(64, 64), quantization).dense(torch.float32)


def fake_engine(shape: ModelShape, choice: Choice, device: torch.device = CPU) -> Engine:
    """Return the engine for a choice, on a device."""
    with device:
        return _engine(shape, choice, Workspace(device))


def _engine(shape: ModelShape, choice: Choice, workspace: Workspace) -> Engine:
    dtype = DTYPES[shape.dtype]
    form = _form(shape, shape.formats.embedding if shape.formats else None, workspace)
    embedding = form.empty(shape.vocabulary)
    resident = choice.embedding == "resident"
    kept = choice.embedding == "resident" or (shape.tied and choice.head == "resident")
    final, first = shape.final_norm, shape.embedding_norm
    weights = Weights(
        device=workspace.device,
        embedding=ResidentEmbedding(embedding, form)
        if resident
        else FakeEmbedding(shape.hidden_size, form.dtype),
        head=_head(shape, choice, embedding if kept else None, workspace),
        head_bias=torch.empty(shape.vocabulary, dtype=dtype) if shape.head_bias else None,
        positions=torch.empty(
            shape.max_context + shape.position_offset, shape.hidden_size, dtype=dtype
        )
        if shape.positions
        else None,
        final_norm=None if final.plain else torch.empty(final.size, dtype=dtype),
        final_norm_bias=torch.empty(final.size, dtype=dtype) if final.bias else None,
        embedding_norm=torch.empty(first.size, dtype=dtype) if first else None,
        embedding_norm_bias=torch.empty(first.size, dtype=dtype) if first and first.bias else None,
        per_layer=_per_layer(shape, dtype, workspace),
        streams=_streams(shape, dtype, workspace),
        blocks=_blocks(shape, choice, dtype, workspace),
        workspace=workspace,
        held=ExitStack(),
    )
    del embedding
    head = Head(
        rows=weights.head,
        bias=weights.head_bias,
        scale=shape.logit_scale,
        softcap=shape.logit_softcap,
    )
    return Engine(
        Decoder(shape, weights, DTYPES[choice.compute_dtype], choice.tile),
        head,
        checkpointed=choice.checkpointing.layers,
        chunk=choice.loss_chunk,
        checkpoints=KeptCheckpoints()
        if choice.checkpointing.offload == "none"
        else PassingCheckpoints(workspace.device),
    )


def fake_method(shape: ModelShape, choice: Choice, device: torch.device = CPU) -> Adapted[Tensor]:
    """Return the method with empty tensors."""
    parameters = {
        tensor.name: Parameter(
            torch.empty(tensor.shape, device=device), requires_grad=tensor.trained
        )
        for tensor in choice.method.tensors(shape)
    }
    return Adapted(choice.method, shape, parameters)


def _head(
    shape: ModelShape,
    choice: Choice,
    embedding: Tensor | None,
    workspace: Workspace,
) -> HeadRows:
    size = (shape.vocabulary, shape.hidden_size)
    form = _form(shape, shape.formats.head if shape.formats else None, workspace)
    match choice.head:
        case "disk":
            return FakeHead(size, form, workspace)
        case "int8":
            parts = {
                name: torch.empty(part.shape, dtype=part.dtype)
                for name, part in Int8Matrix.parts_of(*size, form.dtype).items()
            }
            return Int8Head(Int8Matrix(size, parts, workspace), workspace)
        case "resident":
            if shape.tied and embedding is not None:
                shared = choice.embedding == "resident"
                return ResidentHead(embedding, form, size, workspace, shared=shared)
            return ResidentHead(form.empty(shape.vocabulary), form, size, workspace, shared=False)


def _per_layer(
    shape: ModelShape, dtype: torch.dtype, workspace: Workspace
) -> PerLayerWeights | None:
    own = shape.per_layer
    if own is None:
        return None
    width = shape.layers * own.size
    return PerLayerWeights(
        table=FakeEmbedding(width, dtype),
        projection=torch.empty(width, shape.hidden_size, dtype=dtype),
        norm=torch.empty(own.size, dtype=dtype),
        workspace=workspace,
        rows=own.rows,
    )


def _streams(shape: ModelShape, dtype: torch.dtype, workspace: Workspace) -> dict[str, DenseMatrix]:
    rule, size = shape.altup, (shape.hidden_size, shape.hidden_size)
    modules = () if rule is None else (*rule.entries, *rule.exits)
    return {
        module: DenseMatrix(size, {"values": torch.empty(size, dtype=dtype)}, workspace)
        for module in modules
    }


def _form(shape: ModelShape, kind: str | None, workspace: Workspace) -> RowFormat:
    """Return how rows of embedding or head are stored; ``kind`` is their type in a GGUF file."""
    if kind in QUANTIZED:
        return BlockRows.of(shape.hidden_size, kind, workspace)
    return PlainRows(shape.hidden_size, DTYPES[FLOATS[kind] if kind else shape.dtype])


def _stored(shape: ModelShape, layer: int) -> tuple[StoredAs, ...]:
    if shape.formats is None:
        dtype = DTYPES[shape.dtype]
        return tuple(StoredAs(dtype, linear.transposed) for linear in shape.blocks[layer].matrices)
    block = shape.blocks[layer]
    return tuple(
        StoredAs(torch.float32, blocks=kind, columns=column_order(linear.role, block))
        if kind in QUANTIZED
        else StoredAs(DTYPES[FLOATS[kind]], packed=moved_in_files(block, linear.role))
        for linear, kind in zip(block.matrices, shape.formats.matrices[layer], strict=True)
    )


def _blocks(shape: ModelShape, choice: Choice, dtype: torch.dtype, workspace: Workspace) -> Blocks:
    layouts = [
        Layout(shape.blocks[layer].matrices, choice.quantization, _stored(shape, layer))
        for layer in range(shape.layers)
    ]
    blocks = [_small(block, dtype) for block in shape.blocks]
    if choice.placement == "resident":
        buffers = [torch.empty(layout.nbytes, dtype=torch.uint8) for layout in layouts]
        for block, buffer, layout in zip(blocks, buffers, layouts, strict=True):
            block.matrices = layout.bind(buffer, workspace)
        return ResidentBlocks(blocks, buffers)
    source, size = FakeSource(layouts), max(layout.nbytes for layout in layouts)
    slots = tuple(
        FakeSlot(source, torch.empty(size, dtype=torch.uint8), workspace) for _ in range(2)
    )
    keys = [[linear.key for linear in block.matrices] for block in shape.blocks]
    return StreamedBlocks(blocks, keys, (slots[0], slots[1]))


def _small(shape: BlockShape, dtype: torch.dtype) -> BlockWeights:
    """Return what of a block is no matrix."""
    biased = [norm for norm in shape.norms if norm.bias]
    return BlockWeights(
        norms={x.role: torch.empty(x.size, dtype=dtype) for x in shape.norms if not x.plain},
        norm_biases={norm.role: torch.empty(norm.size, dtype=dtype) for norm in biased},
        biases={x.key: torch.empty(x.outputs, dtype=dtype) for x in shape.matrices if x.bias},
        mixer={x.role: torch.empty(x.shape, dtype=dtype) for x in shape.mixer_tensors},
        routing={x.role: torch.empty(x.shape, dtype=dtype) for x in shape.routing_tensors},
    )
