"""The vocabulary of a run: every setting once, with its type, default and help.

:class:`Choice` is what decides memory and time, :class:`Training` what decides the result
besides it. The command line's flags, the plan file and the help are built from these fields
(:func:`knobs`), so that a setting cannot exist in one place only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from math import inf
from typing import Any, Generic, Literal, TypeVar, get_type_hints

from edgetune.errors import UsageError
from edgetune.escapes import short

T = TypeVar("T")

Quantization = Literal["none", "int8", "nf4", "q8", "q4", "mxfp4", "nvfp4", "gguf"]
Placement = Literal["resident", "host", "disk"]
Offload = Literal["none", "host", "disk"]
EmbeddingPlace = Literal["resident", "disk"]
HeadPlace = Literal["resident", "int8", "disk"]
OptimizerName = Literal["adamw", "adamw-8bit", "paged-adamw-8bit"]
PAGED: OptimizerName = "paged-adamw-8bit"
"""The optimizer whose averages stay in the host's memory."""

LossOn = Literal["assistant", "completion", "all"]
LongRows = Literal["refuse", "split", "cut", "drop"]
ComputeDtype = Literal["float32", "bfloat16", "float16"]
SearchName = Literal["lr", "method"]
ObjectiveName = Literal["sft", "dpo", "ipo", "kto", "orpo", "simpo"]
MOST_PARTS = 1024
"""Of a step's gradients; one process holds a sum for every doubling of their number."""

SFT: ObjectiveName = "sft"
"""Plain language modelling: the loss of every token of an answer."""


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """A value that the program chose for the user, and why."""

    value: T
    because: str


MOST_WHOLE = 2**63 - 1
"""The largest whole number that a setting can be, whatever it is."""

MOST_REAL = 1e38
"""The largest other number: every backend computes with it in float32."""

MOST_RATE = 10**6
"""The highest learning rate, and multiple of it: far beyond all at which anything learns."""

MOST_STEPS = 10**9
"""Steps, and epochs, that a run can be asked for; it would take years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The numbers that make sense for a setting; none of them is larger than what is computed with.

    >>> 1.0 in Interval(low=0, below=1), str(Interval(low=0, below=1)), str(Interval(low=1))
    (False, 'from 0 to below 1', '1 or more')
    >>> 10**30 in Interval(low=1), 1e30 in Interval(low=1), 1e308 in Interval(low=1)
    (False, True, False)
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, number: float) -> bool:
        """Tell whether a number is in here."""
        return (
            abs(number) <= most(number)
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        """Return the end of the sentence "it must be"."""
        low = f"more than {self.above}" if self.low is None else f"from {self.low}"
        if self.high is None and self.below is None:
            return low if self.low is None else f"{self.low} or more"
        return f"{low} to {f'below {self.below}' if self.high is None else self.high}"


def most(number: float) -> float:
    """Return the largest number of the same kind that a setting can be."""
    return MOST_WHOLE if isinstance(number, int) else MOST_REAL


POSITIVE = Interval(above=0)
"""What a strength can be."""

NOT_NEGATIVE = Interval(low=0)

SEEDS = Interval(low=0, high=2**63 - 1)
"""What every generator of random numbers takes."""


def knob(
    default: Any, text: str, *, metavar: str | None = None, interval: Interval | None = None
) -> Any:
    """Declare a setting that the user may fix: default, help, placeholder, allowed numbers."""
    return field(default=default, metadata={"help": text, "metavar": metavar, "interval": interval})


@dataclass(frozen=True, slots=True)
class Knob:
    """A setting as the command line sees it. A ``default`` of None: the program decides."""

    name: str
    type: Any
    default: Any
    help: str
    metavar: str | None
    interval: Interval | None

    @property
    def flag(self) -> str:
        """The long option, ``--micro-batch`` for ``micro_batch``."""
        return "--" + self.name.replace("_", "-")


@cache
def knobs(spec: type) -> tuple[Knob, ...]:
    """Return the settings of a spec class in their order."""
    types = get_type_hints(spec)
    return tuple(
        Knob(name=item.name, type=types[item.name], default=item.default, **item.metadata)
        for item in fields(spec)
        if "help" in item.metadata
    )


def refuse_outside(settings: Iterable[Knob], given: Mapping[str, Any]) -> None:
    """Check the numbers among ``given``, by name, against what their settings allow.

    Raises:
        UsageError: naming every number that makes no sense.
    """
    problems = [
        f"{item.flag} must be {_allowed(item.interval, given[item.name])}; "
        f"found {short(given[item.name])}."
        for item in settings
        if item.interval is not None
        and given.get(item.name) is not None
        and given[item.name] not in item.interval
    ]
    if problems:
        raise UsageError(" ".join(problems))


def _allowed(interval: Interval, number: float) -> str:
    """Return what a number must be, with the bound of all settings if it is above that."""
    if interval.high is None and interval.below is None and most(number) < number < inf:
        return f"{interval}, and at most {most(number):.3g}"
    return str(interval)


def check_numbers(spec: object) -> None:
    """Check the numbers of a spec object against what its settings allow.

    Raises:
        UsageError: naming every number that makes no sense.
    """
    spec_class: type = type(spec)
    bounded = _bounded(spec_class)
    refuse_outside(bounded, {item.name: getattr(spec, item.name) for item in bounded})


@cache
def _bounded(spec: type) -> tuple[Knob, ...]:
    """Return the settings that not every number makes sense for."""
    return tuple(item for item in knobs(spec) if item.interval is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """How many of the blocks, from the first on, keep only their input for the backward pass."""

    layers: int
    offload: Offload = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is learned from, how long and how fast."""

    learning_rate: float = knob(
        None,
        "Peak learning rate (default: by the model's width).",
        interval=Interval(above=0, high=MOST_RATE),
    )
    search: SearchName | None = knob(
        None, "Race a few learning rates (lr) or methods (method) first; loss and drift decide."
    )
    search_methods: tuple[str, ...] = knob(
        ("lora", "adapter", "full", "bitfit"),
        "Methods that --search method races, as far as memory, time and --search-size allow.",
    )
    search_size: float | None = knob(
        None, "Largest adapter file of a raced method, in MB.", interval=Interval(above=0)
    )
    epochs: float = knob(
        3.0,
        "Passes over the training rows (default: by their number).",
        interval=Interval(above=0, high=MOST_STEPS),
    )
    steps: int | None = knob(
        None,
        "Optimizer steps, instead of --epochs.",
        interval=Interval(low=1, high=MOST_STEPS),
    )
    warmup: float = knob(
        0.03,
        "Fraction of the steps for linear warm-up.",
        interval=Interval(low=0, high=1),
    )
    weight_decay: float = knob(
        0.0, "Decoupled weight decay of the trained tensors.", interval=Interval(low=0)
    )
    max_grad_norm: float = knob(
        1.0, "Gradients are scaled down to this global norm.", interval=Interval(above=0)
    )
    seed: int = knob(
        0,
        "Seed of everything random: split, order, initialisation, dropout.",
        interval=SEEDS,
    )
    objective: ObjectiveName = knob(
        SFT,
        "What is minimised: the loss of answers (sft), of answers marked desirable or not (kto), or "
        "of pairs of a better and a worse answer (the others).",
    )
    beta: float | None = knob(
        None,
        "Strength of a preference objective (default: by objective).",
        interval=Interval(above=0),
    )
    margin: float | None = knob(
        None, "Margin of rewards that simpo aims for (default: 1).", interval=NOT_NEGATIVE
    )
    desirable_weight: float | None = knob(
        None, "Weight of desirable answers with kto (default: 1).", interval=NOT_NEGATIVE
    )
    undesirable_weight: float | None = knob(
        None, "Weight of undesirable answers with kto (default: 1).", interval=NOT_NEGATIVE
    )
    share_prompts: bool | None = knob(
        None, "Compute the prompt of a pair once for both answers (default: where the model can)."
    )
    loss_on: LossOn = knob("assistant", "Which tokens the loss counts.")
    long_rows: LongRows | None = knob(
        None, "What to do with a row longer than the context (default: split text, refuse chats)."
    )
    packing: bool = knob(True, "Put several short rows into one, with attention kept apart.")
    validation: float = knob(
        0.1,
        "Fraction of the rows held out for evaluation; 0 holds out none.",
        interval=Interval(low=0, below=1),
    )
    validation_data: str | None = knob(
        None, "A file or folder of rows to evaluate with, instead of a share.", metavar="FILE"
    )
    fields: str | None = knob(
        None,
        "What the fields of a row are called in the file, such as prompt=question,completion=a.",
        metavar="FIELD=COLUMN,…",
    )
    label_names: tuple[str, ...] = knob(
        (),
        "Names of labels that are numbers, the first for 0 (default: as the data declares them).",
        metavar="NAME,…",
    )
    eval_every: int | None = knob(
        None,
        "Steps between evaluations (default: ten evaluations a run).",
        interval=Interval(low=1),
    )
    patience: int | None = knob(
        None,
        "End early after this many evaluations without a lower validation loss; 0: never (default: "
        "3 where few rows are repeated often).",
        interval=Interval(low=0),
    )
    gradient_parts: int | None = knob(
        None,
        "Parts in which the gradients of a step are added up: so many processes, or fewer, give the "
        "same bits (default: one for each process).",
        interval=Interval(low=1, high=MOST_PARTS),
    )
    save_every: int | None = knob(
        None, "Steps between checkpoints (default: at evaluations).", interval=Interval(low=1)
    )
    keep: int = knob(
        3, "Newest checkpoints kept, besides the best; 0 keeps all.", interval=Interval(low=0)
    )

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        check_numbers(self)


OBJECTIVE_SETTINGS = ("beta", "margin", "desirable_weight", "undesirable_weight")
"""Settings of a training that only some objectives have."""


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
