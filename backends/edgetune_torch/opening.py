"""Opening a planned session: load, build, adapt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from edgetune.backend import DeviceOutOfMemoryError, opening_error
from edgetune.block_shape import BlockShape
from edgetune.buckets import bucket
from edgetune.choice import Choice
from edgetune.methods.adapted import Adapted
from edgetune.model import LocalModel
from edgetune.run_spec import RunSpec
from edgetune.settings.spec import Offload
from edgetune.shape import ModelShape
from edgetune.storage import BYTES
from edgetune.world import ALONE, World
from edgetune_torch import cpu_kernels
from edgetune_torch.cards import card_number
from edgetune_torch.checkpoints import make_checkpoints
from edgetune_torch.decoder import Decoder
from edgetune_torch.engine import Engine
from edgetune_torch.load import Loader, Placements, Weights
from edgetune_torch.loss import Head
from edgetune_torch.malloc import Heap, limit_heap, trim
from edgetune_torch.memory import MemoryWatch
from edgetune_torch.memory_limit import MemoryLimit
from edgetune_torch.onednn import limit_kernels
from edgetune_torch.out_of_memory import out_of_memory
from edgetune_torch.session import TorchSession
from edgetune_torch.tensors import LoadedBase, new_parameters

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_session(spec: RunSpec, model: LocalModel, world: World = ALONE) -> TorchSession:
    """Load the model as planned, with a new adapter; train it along with the other ranks.

    Raises:
        DeviceOutOfMemoryError: if memory runs out before the first step.
    """
    try:
        with out_of_memory():
            return _opened(spec, model, world)
    except DeviceOutOfMemoryError as error:
        raise opening_error(error) from None


def _opened(spec: RunSpec, model: LocalModel, world: World) -> TorchSession:
    limit_heap()
    trim()  # what was opened or measured before has left holes
    limit_kernels()
    device = _place(spec)
    if device.type == "cpu" and spec.choice.compute_dtype == "bfloat16":
        cpu_kernels.library()  # a compiler takes memory, which there is now
    with ExitStack() as held:
        watch = MemoryWatch(device, spec.limits.budget_bytes)
        held.callback(watch.close)
        limit = MemoryLimit(device, spec.limits.limit_bytes, spec.limits.runtime_bytes)
        held.callback(limit.close)
        heap = Heap(spec.limits.peak_bytes, between=_between_products(spec.choice, model.shape))

        def check(divisible: bool) -> None:
            if device.type == "cpu":
                heap.check()
            limit.check(divisible)

        engine = open_engine(spec, model, device, check)
        held.callback(engine.close)
        base = LoadedBase(engine.decoder, model.folder)
        parameters = new_parameters(
            spec.choice.method, model.shape, base, spec.training.seed, device
        )
        engine.decoder.weights.workspace.clear()  # what was read is wider than products may be
        method = Adapted[Tensor](spec.choice.method, model.shape, parameters)
        trim()
        limit.check(False)
        return TorchSession(spec, engine, method, watch, held.pop_all(), world)


WIDEST = 3
"""Of the widest tensors of a block, how many are made between two products at most."""

SCORED = 32
"""Bytes that attention makes of a number of its queries, at most (docs/decisions/0045)."""


def _between_products(choice: Choice, shape: ModelShape) -> int:
    """Return how many bytes a step allocates between two products, at most."""
    positions = bucket(choice.context + choice.method.virtual_tokens)
    tiled = choice.checkpointing.layers >= shape.layers and all(x.splits for x in shape.kinds)
    if choice.tile and tiled:
        positions = min(positions, choice.tile + shape.reach)
    width = BYTES[choice.compute_dtype]
    numbers = max(
        max(WIDEST * _widest(kind) * width, SCORED * kind.queries) for kind in shape.kinds
    )
    return choice.micro_batch * positions * numbers


def _widest(kind: BlockShape) -> int:
    """Return the most numbers of a token in one tensor."""
    rule = kind.experts
    chosen = 0 if rule is None else rule.chosen * max(rule.hidden, 2 * rule.size)
    return max(chosen, *(max(linear.inputs, linear.outputs) for linear in kind.linears))


def _place(spec: RunSpec) -> torch.device:
    """Return where the plan computes; a card by its number, which the allocator's cap asks for.

    It is the one that was planned for, if it is still here, and made the current one.
    """
    if spec.kind != "cuda":
        return torch.device("cpu")
    device = torch.device("cuda", card_number(spec.uuid))
    torch.cuda.set_device(device)
    return device


def open_engine(
    spec: RunSpec,
    model: LocalModel,
    device: torch.device,
    check: Callable[[bool], None] = lambda _: None,
) -> Engine:
    """Load the frozen model as planned; ``check`` is called before each product and may raise."""
    choice = spec.choice
    placements = Placements(blocks=choice.placement, embedding=choice.embedding, head=choice.head)
    weights = Loader(model, device, choice.quantization, placements, check).load()
    return build_engine(
        model,
        weights,
        DTYPES[choice.compute_dtype],
        checkpointed=choice.checkpointing.layers,
        offload=choice.checkpointing.offload,
        chunk=choice.loss_chunk,
        tile=choice.tile,
    )


def build_engine(
    model: LocalModel,
    weights: Weights,
    dtype: torch.dtype,
    *,
    checkpointed: int = 0,
    offload: Offload = "none",
    chunk: int = 256,
    tile: int = 0,
) -> Engine:
    """Return the engine over loaded weights; the knobs are those of the plan."""
    shape = model.shape
    head = Head(
        rows=weights.head,
        bias=weights.head_bias,
        scale=shape.logit_scale,
        softcap=shape.logit_softcap,
    )
    return Engine(
        Decoder(shape, weights, dtype, tile),
        head,
        checkpointed=checkpointed,
        chunk=chunk,
        checkpoints=make_checkpoints(offload, weights.device),
    )
