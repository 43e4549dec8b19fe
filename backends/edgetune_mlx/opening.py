"""Opening a planned session: check, load, build, adapt."""

from __future__ import annotations

from edgetune.backend import DeviceOutOfMemoryError, opening_error
from edgetune.errors import UsageError
from edgetune.methods.adapted import Adapted
from edgetune.model import LocalModel
from edgetune.run_spec import RunSpec
from edgetune.shape import ModelShape
from edgetune.world import ALONE, World
from edgetune_mlx.checkpoints import InMemory, OnDisk
from edgetune_mlx.decoder import Decoder
from edgetune_mlx.engine import Engine
from edgetune_mlx.load import Loader
from edgetune_mlx.loss import Head
from edgetune_mlx.matrices import packing_of
from edgetune_mlx.memory import Guard
from edgetune_mlx.out_of_memory import out_of_memory
from edgetune_mlx.precision import DTYPES, compiles
from edgetune_mlx.session import MlxSession
from edgetune_mlx.streaming import StreamedBlocks
from edgetune_mlx.tensors import LoadedBase, new_parameters


def open_session(spec: RunSpec, model: LocalModel, world: World = ALONE) -> MlxSession:
    """Load the model as planned, with a new adapter; train it along with the other ranks.

    Raises:
        UsageError: naming everything of the plan that MLX cannot do.
        DeviceOutOfMemoryError: if memory runs out before the first step.
    """
    _check(spec, model.shape)
    try:
        with out_of_memory():
            return _opened(spec, model, world)
    except DeviceOutOfMemoryError as error:
        raise opening_error(error) from None


def _opened(spec: RunSpec, model: LocalModel, world: World) -> MlxSession:
    choice, shape = spec.choice, model.shape
    loader = Loader(model, packing_of(choice.quantization))
    guard = Guard.of(spec, shape)
    try:
        with guard.made_to_last():
            weights = loader.load(StreamedBlocks(loader) if choice.placement == "disk" else None)
        head = Head(
            weight=weights.head,
            bias=weights.head_bias,
            scale=shape.logit_scale,
            softcap=shape.logit_softcap,
        )
        decoder = Decoder(shape, weights, DTYPES[choice.compute_dtype], choice.tile)
        engine = Engine(
            decoder,
            head,
            guard,
            checkpointed=choice.checkpointing.layers,
            chunk=choice.loss_chunk,
            entries=OnDisk() if choice.checkpointing.offload == "disk" else InMemory(),
            compiled=compiles(),
        )
        base = LoadedBase(decoder, model.folder)
        with guard.made_to_last():
            parameters = new_parameters(choice.method, shape, base, spec.training.seed)
        method = Adapted(choice.method, shape, parameters)
    except BaseException:
        guard.close()
        raise
    return MlxSession(spec, engine, method, world)


def _check(spec: RunSpec, shape: ModelShape) -> None:
    """Refuse what would otherwise be ignored."""
    choice, problems = spec.choice, []
    if choice.optimizer != "adamw":
        problems.append(f"no optimizer {choice.optimizer}; --optimizer adamw works")
    if choice.placement == "host":
        problems.append("no host memory besides its own; --placement disk works")
    if choice.placement == "disk" and choice.checkpointing.layers < shape.layers:
        problems.append("to keep activations of blocks on disk; --checkpointing all works")
    if choice.embedding != "resident" or choice.head != "resident":
        problems.append("embedding and head in memory only; --embedding and --head resident work")
    if choice.checkpointing.offload == "host":
        problems.append("no host memory to offload to; disk works")
    if problems:
        raise UsageError(f"MLX has {'; it has '.join(problems)}.")
