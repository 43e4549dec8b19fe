"""The vocabulary of a run: every setting once, with its type, default and help.

:class:`Choice` is what decides memory and time, :class:`Training` what decides the result
besides it. The command line's flags, the plan file and the help are built from these fields
(:func:`knobs`), so that a setting cannot exist in one place only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Literal, TypeVar, get_type_hints

T = TypeVar("T")

Quantization = Literal["none", "int8", "nf4", "q8", "q4", "mxfp4"]
Placement = Literal["resident", "host", "disk"]
Offload = Literal["none", "host", "disk"]
OptimizerName = Literal["adamw", "adamw-8bit", "paged-adamw-8bit"]
LossOn = Literal["assistant", "completion", "all"]
LongRows = Literal["refuse", "split", "cut", "drop"]
ComputeDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """A value that the program chose for the user, and why."""

    value: T
    because: str


def knob(default: Any, text: str, *, metavar: str | None = None) -> Any:
    """Declare a setting that the user may fix: its default, its help and its placeholder."""
    return field(default=default, metadata={"help": text, "metavar": metavar})


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting as the command line sees it. A ``default`` of None: the program decides."""

    name: str
    type: Any
    default: Any
    help: str
    metavar: str | None

    @property
    def flag(self) -> str:
        """The long option, ``--micro-batch`` for ``micro_batch``."""
        return "--" + self.name.replace("_", "-")


def knobs(*specs: type) -> Iterator[Knob]:
    """Yield the settings of spec classes in their order."""
    for spec in specs:
        types = get_type_hints(spec)
        for item in fields(spec):
            if "help" in item.metadata:
                yield Knob(
                    name=item.name,
                    type=types[item.name],
                    default=item.default,
                    help=item.metadata["help"],
                    metavar=item.metadata["metavar"],
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """How many of the blocks, from the first on, keep only their input for the backward pass."""

    layers: int
    offload: Offload = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is learned from, how long and how fast."""

    learning_rate: float = knob(None, "Peak learning rate (default: by the model's width).")
    epochs: float = knob(3.0, "Passes over the training rows, unless --steps is given.")
    steps: int | None = knob(None, "Optimizer steps, instead of --epochs.")
    warmup: float = knob(0.03, "Share of the steps over which the learning rate rises.")
    weight_decay: float = knob(0.0, "Decoupled weight decay of the trained tensors.")
    max_grad_norm: float = knob(1.0, "Gradients are scaled down to this global norm.")
    seed: int = knob(0, "Seed of everything random: split, order, initialisation, dropout.")
    loss_on: LossOn = knob("assistant", "Which tokens are trained.")
    long_rows: LongRows | None = knob(
        None, "What to do with a row longer than the context (default: split text, refuse chats)."
    )
    packing: bool = knob(True, "Put several short rows into one, with attention kept apart.")
    validation: float = knob(0.1, "Share of the rows kept for evaluation; 0 keeps none.")
    eval_every: int | None = knob(None, "Steps between evaluations (default: ten in a run).")
    save_every: int | None = knob(None, "Steps between checkpoints (default: at evaluations).")
    keep: int = knob(3, "Newest checkpoints kept, besides the best; 0 keeps all.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """The optimizer's constants, the same in every backend.

    Decoupled weight decay and bias correction (Loshchilov & Hutter 2019, algorithm 2):
    ``p -= lr * (m_hat / (sqrt(v_hat) + eps) + weight_decay * p)``.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


ADAMW = AdamW()


def values(spec: Any) -> dict[str, Any]:
    """Return the fields of a dataclass object by name, not converted."""
    return {item.name: getattr(spec, item.name) for item in fields(spec)}


def to_plain(value: Any) -> Any:
    """Return dataclasses, tuples and mappings as what JSON and YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value
