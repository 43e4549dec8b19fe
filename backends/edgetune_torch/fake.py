"""An opened model whose tensors have shapes but no values, for dry runs.

Everything that would be read from a file is empty; everything else is the engine's own.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn import Parameter

from edgetune.choice import Choice
from edgetune.shape import ModelShape
from edgetune_torch.adaptation import Adapted
from edgetune_torch.checkpoints import Checkpoints, KeptCheckpoints
from edgetune_torch.decoder import Decoder
from edgetune_torch.dynamic_map import decode_blocks, encode_blocks
from edgetune_torch.engine import Engine
from edgetune_torch.int8 import Int8Matrix
from edgetune_torch.layout import Layout
from edgetune_torch.load import Weights
from edgetune_torch.loss import Head
from edgetune_torch.matrices import store
from edgetune_torch.methods import adapt
from edgetune_torch.opening import DTYPES
from edgetune_torch.streaming import Slot, StreamedBlocks
from edgetune_torch.vocabulary import HeadRows, Int8Head, ResidentEmbedding, ResidentHead
from edgetune_torch.weights import Blocks, BlockWeights, ResidentBlocks
from edgetune_torch.workspace import Workspace


class FakeSource:
    """Blocks of one layout that are never read."""

    def __init__(self, layout: Layout) -> None:
        """Say of every block that it lies so."""
        self._layout = layout

    def layout(self, layer: int) -> Layout:  # noqa: ARG002  # all blocks are alike
        """Return the layout."""
        return self._layout

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


class FakeHead(ResidentHead):
    """A head that is read through two buffers of one slice each."""

    streamed = True

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, workspace: Workspace) -> None:
        """Allocate the buffers; the rows themselves are seen and not counted."""
        HeadRows.__init__(self, shape, workspace)
        self._buffers = [torch.empty(self.height, shape[1], dtype=dtype) for _ in range(2)]
        self.weight = self._buffers[0][:1].expand(shape[0], shape[1])


class PassingCheckpoints(Checkpoints):
    """Checkpoints that leave the device and come back as new tensors."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._kept: list[tuple[torch.Size, torch.dtype]] = []

    def put(self, x: Tensor) -> None:
        """Remember what x looked like."""
        self._kept.append((x.shape, x.dtype))

    def take(self) -> Tensor:
        """Return an empty tensor like the newest."""
        shape, dtype = self._kept.pop()
        return torch.empty(shape, dtype=dtype)

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
    store(torch.zeros(64, 64), quantization).dense(torch.float32)


def fake_engine(shape: ModelShape, choice: Choice) -> Engine:
    """Return the engine for a choice."""
    dtype, workspace = DTYPES_STORED[shape.dtype], Workspace(torch.device("cpu"))
    embedding = torch.empty(shape.vocabulary, shape.hidden_size, dtype=dtype)
    resident = choice.embedding == "resident"
    kept = choice.embedding == "resident" or (shape.tied and choice.head == "resident")
    final = shape.final_norm
    weights = Weights(
        device=workspace.device,
        embedding=ResidentEmbedding(embedding)
        if resident
        else FakeEmbedding(shape.hidden_size, dtype),
        head=_head(shape, choice, embedding if kept else None, dtype, workspace),
        head_bias=torch.empty(shape.vocabulary, dtype=dtype) if shape.head_bias else None,
        positions=torch.empty(shape.max_context, shape.hidden_size, dtype=dtype)
        if shape.positions
        else None,
        final_norm=torch.empty(final.size, dtype=dtype),
        final_norm_bias=torch.empty(final.size, dtype=dtype) if final.bias else None,
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
        Decoder(shape, weights, DTYPES[choice.compute_dtype]),
        head,
        checkpointed=choice.checkpointing.layers,
        chunk=choice.loss_chunk,
        checkpoints=KeptCheckpoints()
        if choice.checkpointing.offload == "none"
        else PassingCheckpoints(),
    )


DTYPES_STORED = {"float16": torch.float16, **DTYPES}


def fake_method(shape: ModelShape, choice: Choice) -> Adapted:
    """Return the method with empty tensors."""
    parameters = {
        tensor.name: Parameter(torch.empty(tensor.shape), requires_grad=tensor.trained)
        for tensor in choice.method.tensors(shape)
    }
    return adapt(choice.method, shape, parameters)


def _head(
    shape: ModelShape,
    choice: Choice,
    embedding: Tensor | None,
    dtype: torch.dtype,
    workspace: Workspace,
) -> HeadRows:
    size = (shape.vocabulary, shape.hidden_size)
    match choice.head:
        case "disk":
            return FakeHead(size, dtype, workspace)
        case "int8":
            parts = {
                name: torch.empty(part.shape, dtype=part.dtype)
                for name, part in Int8Matrix.parts_of(*size, dtype).items()
            }
            return Int8Head(Int8Matrix(size, parts, workspace), workspace)
        case "resident":
            if shape.tied and embedding is not None:
                return ResidentHead(embedding, workspace, shared=choice.embedding == "resident")
            return ResidentHead(torch.empty(size, dtype=dtype), workspace, shared=False)


def _blocks(shape: ModelShape, choice: Choice, dtype: torch.dtype, workspace: Workspace) -> Blocks:
    layout = Layout(shape.linears, choice.quantization, (dtype,) * len(shape.linears))
    blocks = [_small(shape, dtype) for _ in range(shape.layers)]
    if choice.placement == "resident":
        buffers = [torch.empty(layout.nbytes, dtype=torch.uint8) for _ in blocks]
        for block, buffer in zip(blocks, buffers, strict=True):
            block.matrices = layout.bind(buffer, workspace)
        return ResidentBlocks(blocks, buffers)
    source = FakeSource(layout)
    slots = tuple(
        FakeSlot(source, torch.empty(layout.nbytes, dtype=torch.uint8), workspace) for _ in range(2)
    )
    roles = [linear.role for linear in shape.linears]
    return StreamedBlocks(blocks, roles, (slots[0], slots[1]))


def _small(shape: ModelShape, dtype: torch.dtype) -> BlockWeights:
    """Return the norms and biases of a block."""
    biased = [norm for norm in shape.norms if norm.bias]
    return BlockWeights(
        norms={norm.role: torch.empty(norm.size, dtype=dtype) for norm in shape.norms},
        norm_biases={norm.role: torch.empty(norm.size, dtype=dtype) for norm in biased},
        biases={x.role: torch.empty(x.outputs, dtype=dtype) for x in shape.linears if x.bias},
    )
