"""What a method is: the tensors that it adds to a frozen model, and how they join its pass.

Their names, shapes, first values and number are data; the places where a method steps in are
text over :mod:`edgetune.network.ops`. Both are said once, for all backends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from edgetune.errors import UsageError
from edgetune.escapes import half_character
from edgetune.methods.initial import Base, Initial, start
from edgetune.network.adaptation import Sublayer
from edgetune.network.block import Block
from edgetune.network.experts import chosen_experts
from edgetune.network.ops import A, Attended
from edgetune.settings.spec import check_numbers, knobs, values
from edgetune.shape import Experts, Linear, ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Changes, StoredBase


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTensor:
    """A float32 tensor of a method: its name in the adapter file, its shape, where it starts.

    ``name`` is without PEFT's ``base_model.model.`` prefix. ``rate`` multiplies the learning
    rate; a tensor that is not ``trained`` is a constant of the method.
    """

    name: str
    shape: tuple[int, ...]
    initial: Initial
    rate: float = 1.0
    trained: bool = True
    rescaled: bool | None = None
    """Of a tensor of a projection: whether its rows are multiplied where those of the weight are, as
    when a GGUF file has multipliers in its weights that the folder has beside them. None: unknown;
    an adapter with such a tensor is refused over the other form."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def module(self, modules: Collection[str]) -> str | None:
        """Return of which module it is, of some; None: of none of them.

        >>> AdapterTensor(name="a.b.scale", shape=(1,), initial=ONES).module({"a", "a.b"})
        'a.b'
        """
        name = self.name
        while name:
            name = name.rpartition(".")[0]
            if name in modules:
                return name
        return None


class Method(ABC):
    """One way to adapt a model. Every final subclass is a frozen dataclass of its settings."""

    kind: ClassVar[str]
    mergeable: ClassVar[bool]
    """Whether the trained tensors can be merged into the base weights."""
    format: ClassVar[str | None]
    """The class of :mod:`edgetune.adapters` that writes it; None: it is saved as another method."""
    peft_type: ClassVar[str | None] = None
    """What PEFT calls it; methods that share a name are told apart by the first one's format."""
    attends: ClassVar[bool] = False
    """Whether tokens attend to keys that it trains."""
    reads_summands: ClassVar[bool] = True
    """Whether gradients depend on what :attr:`edgetune.shape.BlockShape.summands` return; if not,
    a block that is computed again for them leaves these products out."""
    rate_factor: ClassVar[float] = 1.0
    """The usual learning rate as a multiple of LoRA's, as the papers' recipes have it."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing, and texts that cannot be written down."""
        check_numbers(self)
        for item in knobs(type(self)):
            value = getattr(self, item.name)
            if isinstance(value, str) and (problem := half_character(value)):
                raise UsageError(f"{item.flag}: {problem}")

    @abstractmethod
    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return every tensor of the method, in a fixed order.

        Raises:
            UsageError: if the settings name parts that the model does not have.
        """

    def parameters(self, shape: ModelShape) -> int:
        """Return the number of trained parameters."""
        return sum(tensor.size for tensor in self.tensors(shape) if tensor.trained)

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Return why this cannot be done, each with what to do; asked before anything is loaded.

        ``context`` is the longest row in tokens.
        """
        return []

    def used(self) -> dict[str, Any]:
        """Return the settings as they are used: what was left open has the value that holds then."""
        found = values(self)
        return found | {"layers": "all"} if found.get("layers", 0) is None else found

    # What the planner counts with.

    def first_layer(self, shape: ModelShape) -> int:
        """Return the first block whose backward pass is needed; one past the last if none is.

        It is the first that computes with a trained tensor, or the first of all if the input is
        trained.
        """
        if self.trains_input:
            return 0
        names = [tensor.name for tensor in self.tensors(shape) if tensor.trained]
        # what is trained for all blocks are keys and values, which only attention reads
        shared = any(self.everywhere(name) for name in names)
        adapted = (
            layer
            for layer, block in enumerate(shape.blocks)
            if (shared and block.attention is not None)
            or any(name.startswith(shape.block(layer)) for name in names)
        )
        return next(adapted, shape.layers)

    @property
    def usual_factor(self) -> float:
        """:attr:`rate_factor`, unless the settings want another one."""
        return self.rate_factor

    @property
    def largest_step(self) -> str:
        """A step in which as much is drawn, and takes memory, as ever is."""
        return "0"

    @property
    def trains_input(self) -> bool:
        """Whether gradients are needed down to the input of the first block."""
        return False

    def at_input(self, shape: ModelShape, name: str) -> bool:
        """Return whether a trained tensor takes part in the input of the first block."""
        return self.trains_input

    def adapts_experts(self, shape: ModelShape) -> bool:
        """Return whether it steps in at experts."""
        return False

    def trained_head(self, shape: ModelShape) -> str | None:
        """Return the name of the trained output projection; None: it is frozen."""
        return None

    @property
    def virtual_tokens(self) -> int:
        """Trained tokens put before every document: rows grow by as many for each."""
        return 0

    @property
    def positions(self) -> int:
        """Positions that keys before the first token take in every document."""
        return 0

    # How it joins the forward pass; see :class:`edgetune.network.adaptation.Adaptation`.
    # ``own`` holds the method's tensors.

    def look_up(self, block: Block[A], own: Adapted[A], tokens: A) -> A:
        """Return the rows (B, S, D) of an embedding table for tokens (B, S)."""
        return block.ops.embedding(tokens, block.shape.embedding_scale)

    def embed(self, block: Block[A], own: Adapted[A], x: A) -> A:
        """Return the embeddings (B, S, D) of the tokens."""
        return x

    def norm(self, block: Block[A], own: Adapted[A], role: str, x: A) -> A:
        """Return x normalised by a norm of the block, or by the final one."""
        return block.ops.norm(role, x)

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return a projection (..., outputs) of x (..., inputs)."""
        return block.ops.linear(linear.role, x)

    def attend(self, block: Block[A], own: Adapted[A], attended: Attended[A]) -> A:
        """Return the output (B, H, S, h) of the block's attention."""
        return block.ops.attend(attended)

    def mix(self, block: Block[A], own: Adapted[A], inputs: Sequence[A]) -> A:
        """Return what a mixer without attention makes of what its projections made."""
        return block.ops.mix(block.recurrent, inputs, {})

    def experts(self, block: Block[A], own: Adapted[A], rule: Experts, x: A) -> A:
        """Return what the chosen experts make of x (B, S, D)."""
        return chosen_experts(block, rule, x, {})

    def sublayer(self, block: Block[A], own: Adapted[A], which: Sublayer, x: A, out: A) -> A:
        """Return what one half of the block adds to the stream, of its input and its output."""
        return out

    @property
    def draws(self) -> bool:
        """Whether random numbers are part of what a training pass computes."""
        return False

    def everywhere(self, name: str) -> bool:
        """Return whether a trained tensor takes part in every block."""
        return False

    # What is written.

    def on_disk(self) -> Method:
        """Return the method that the saved tensors belong to; some train more than they keep."""
        return self

    def folds(self, shape: ModelShape) -> bool:
        """Tell whether other tensors are saved than are trained."""
        saved, trained = self.on_disk().tensors(shape), self.tensors(shape)
        return [(x.name, x.shape) for x in saved] != [(x.name, x.shape) for x in trained]

    def fold(self, shape: ModelShape, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return the tensors of :meth:`on_disk` from those of this method."""
        return dict(tensors)

    def merge(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]], base: StoredBase
    ) -> Changes:
        """Return what becomes of the base's tensors; asked of ``mergeable`` methods alone."""
        raise NotImplementedError(f"{self.kind} is not merged")


def initial_value(
    tensor: AdapterTensor, seed: int, base: Base | None = None
) -> NDArray[np.float32]:
    """Return a tensor's value before training; ``base`` for those that start from its values."""
    return start(tensor.initial, tensor.name, tensor.shape, seed, base)
