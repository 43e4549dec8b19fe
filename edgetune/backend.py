"""What every backend implements, and how one is found.

One optimizer step is the unit: finer would cut a compiled or a streamed step in pieces,
coarser would copy the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from math import nan
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgetune.data.answers import Compared, Losses, Scoring
from edgetune.data.batch import MicroBatch
from edgetune.device import Device
from edgetune.device.base import DeviceIdentity
from edgetune.errors import OutOfMemoryError, UsageError
from edgetune.methods.base import Method
from edgetune.model import LocalModel
from edgetune.objectives import Rewards
from edgetune.run_spec import RunSpec
from edgetune.settings.spec import SEEDS, Decision, Interval, check_numbers, knob
from edgetune.shape import ModelShape
from edgetune.speed import Measurements
from edgetune.world import ALONE, Place, World

GROUP = "edgetune.backends"

T = TypeVar("T")
S = TypeVar("S", Rewards, Compared)

Tensors = Mapping[str, NDArray[np.generic]]

Pull = Callable[[int, NDArray[np.float32]], NDArray[np.float32]]
"""From a block's number and its output (B, D) where each row's last answer begins to the gradient by it."""

DEFAULT_ADAPTER = "own"
"""Name of the adapter that a session is opened with, the one that it trains."""

_LEAST_TEMPERATURE = 1e-4
"""Logits divided by less than this may leave the range of float32."""


class DeviceOutOfMemoryError(OutOfMemoryError):
    """Something did not fit; the session is as it was before."""


class TornStateError(OutOfMemoryError):
    """Weights or optimizer state were written half-way; a session answers so until restored.

    Whoever would save them is answered so too.
    """

    kind = "torn-state"

    def __init__(self) -> None:
        """Say what is left to do."""
        super().__init__(
            "Memory ran out while weights and optimizer state were being written: they are no "
            "longer those of one step. Resume from the last checkpoint."
        )


def opening_error(error: DeviceOutOfMemoryError) -> DeviceOutOfMemoryError:
    """Return what to tell when memory ran out before the first step."""
    return DeviceOutOfMemoryError(
        f"The model does not fit while it is opened: {error}. Close other programs, or plan "
        "again with a smaller --memory."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """``loss`` is the mean over the terms of the step; ``grad_norm`` is before clipping.

    ``metrics`` are further means of an objective over answers, by name.
    """

    loss: float
    grad_norm: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """Sums over the evaluated rows, so that parts can be added.

    ``loss_tokens`` counts the terms of ``loss_sum``: loss tokens, or the pairs of an objective
    over answers, which has ``rewards`` too. Where a term depends on all rows, the answers are
    ``waiting`` and the sum is not a number until :meth:`settled` is asked.
    """

    loss_sum: float = 0.0
    loss_tokens: int = 0
    correct: int = 0
    """Loss tokens that were the most probable ones; pairs whose better answer has more reward."""
    rows: int = 0
    rewards: Rewards | None = None
    waiting: Compared | None = None

    def __add__(self, other: EvalResult) -> EvalResult:
        """Return the sums over both."""
        return EvalResult(
            loss_sum=self.loss_sum + other.loss_sum,
            loss_tokens=self.loss_tokens + other.loss_tokens,
            correct=self.correct + other.correct,
            rows=self.rows + other.rows,
            rewards=_added(self.rewards, other.rewards),
            waiting=_added(self.waiting, other.waiting),
        )

    def settled(self) -> EvalResult:
        """Return the sums of an evaluation of which all parts are there."""
        if self.waiting is None:
            return self
        found = self.waiting.scored()
        return replace(
            self,
            loss_sum=found.loss,
            correct=found.rewards.right,
            rewards=found.rewards,
            waiting=None,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The means of an objective over answers, by name."""
        return {} if self.rewards is None else self.rewards.means(self.loss_tokens)


def _added(one: S | None, other: S | None) -> S | None:
    return one if other is None else other if one is None else one + other


def scored_result(
    scoring: Scoring, batch: MicroBatch, losses: Losses, *, is_base: bool
) -> EvalResult:
    """Return what an objective over answers says of a micro-batch with these losses (N,)."""
    if scoring.objective.needs_mismatched:
        waiting = scoring.compared(batch, losses, is_base=is_base)
        rows = 0 if batch.is_mismatched else len(batch.documents)
        return EvalResult(loss_sum=nan, loss_tokens=waiting.terms, rows=rows, waiting=waiting)
    scoring.evaluate(batch, losses, is_base=is_base)
    total = scoring.total
    return EvalResult(
        loss_sum=total.loss,
        loss_tokens=total.terms,
        correct=total.rewards.right,
        rows=len(batch.documents),
        rewards=total.rewards,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """Bytes in use now, at the peak since opening, kept by the allocator, and allowed."""

    current_bytes: int
    peak_bytes: int
    cache_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """How text is continued."""

    max_tokens: int = knob(128, "Longest answer.", interval=Interval(low=1, high=2**31 - 1))
    temperature: float = knob(
        0.0,
        "How freely tokens are drawn; 0 takes the most probable ones.",
        interval=Interval(low=0, high=100),
    )
    top_p: float = knob(
        1.0,
        "Draw from the most probable tokens that add up to this probability.",
        interval=Interval(above=0, high=1),
    )
    seed: int = knob(0, "Seed of the draws.", interval=SEEDS)
    end_tokens: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        check_numbers(self)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken: what tiny temperatures come to as well."""
        return self.temperature < _LEAST_TEMPERATURE


class Cache(Protocol):
    """What a session keeps of the tokens of one row, to go on behind them."""

    @property
    def before(self) -> int:
        """Positions that the row's adapter takes before the first token."""

    def cut(self, tokens: int) -> None:
        """Forget all but the first tokens: all of them, where a layer keeps a state, not keys."""

    def resize(self, capacity: int) -> None:
        """Have room for so many tokens in all, not for more; those that it keeps are fewer.

        Raises:
            DeviceOutOfMemoryError: if they do not fit; the cache is of no use then.
        """


class Session(Protocol):
    """An opened model with its adapter and its optimizer."""

    def step(
        self, micro_batches: Sequence[MicroBatch], *, loss_tokens: int, learning_rate: float
    ) -> StepResult:
        """Take one optimizer step on ``sum(loss over loss tokens) / loss_tokens``.

        With an objective over answers the sum is over its terms, and ``loss_tokens`` counts them.
        Micro-batches of mismatched answers are none: they are scored first, and not learned.

        Raises:
            DeviceOutOfMemoryError: if it does not fit; nothing has changed then.
            DivergedError: if loss or gradients are not finite; nothing has changed then.
        """

    def attach(self, name: str, method: Method, tensors: Tensors) -> None:
        """Hold a further adapter over the same base, which rows can name from now on.

        Nothing of the base is read again or changed, and nothing is merged into it: without
        adapters it computes what it always did, bit for bit.

        Raises:
            UsageError: if the name is taken.
            ModelError: naming every tensor that is missing, unknown or of another shape.
        """

    def detach(self, name: str) -> None:
        """Let go of an adapter that was attached."""

    def evaluate(
        self, micro_batches: Iterable[MicroBatch], *, adapter: str | None = DEFAULT_ADAPTER
    ) -> EvalResult:
        """Return the loss over micro-batches, with an adapter or (None) of the base alone.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
        """

    def evaluate_rows(
        self, batch: MicroBatch, adapters: Sequence[str | None]
    ) -> Sequence[EvalResult]:
        """Return the loss of each row of a micro-batch, each with an adapter of its own or none.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
        """

    @property
    def shape(self) -> ModelShape:
        """The model's."""

    def new_cache(self, adapter: str | None, capacity: int) -> Cache:
        """Return a cache for a row of ``capacity`` tokens that an adapter reads; None: the base.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
        """

    def read(self, rows: Sequence[tuple[Cache, Sequence[int]]]) -> NDArray[np.float32]:
        """Read each row's next tokens, and return the logits (rows, V) after its last one.

        The tokens join the row's cache, which has room for them. Either all caches are empty or
        none is. A row gets the logits that it would get alone, but for rounding.

        Raises:
            DeviceOutOfMemoryError: if it does not fit; these caches are of no use then.
        """

    def logits(
        self, tokens: Sequence[int], *, adapter: str | None = DEFAULT_ADAPTER
    ) -> NDArray[np.float32]:
        """Return the logits (T, V) after each of T tokens of one row."""

    def activations(self, batch: MicroBatch) -> NDArray[np.float32]:
        """Return the output of each block (L, B, D) where the last answer of each row begins.

        That is at the token which is followed by its first loss token; the adapter is the session's own.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
        """

    def pull(self, batch: MicroBatch, pull: Pull) -> Tensors:
        """Return the gradients by the trained tensors of something said of these outputs.

        ``pull`` is told them from the last block to the first that the adapter changes, and says the
        gradient by each. Nothing is learned.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
        """

    def adapter_tensors(self, *, copied: bool = True) -> Tensors:
        """Return the trained tensors by the names of :mod:`edgetune.methods`.

        Where they need not be ``copied``, they may be the session's own, which a step changes.
        """

    def optimizer_tensors(self, *, copied: bool = True) -> Tensors:
        """Return the optimizer's state, enough to go on bit for bit; ``copied`` as the adapter's."""

    def restore(self, adapter: Tensors, optimizer: Tensors | None = None) -> None:
        """Take over saved tensors.

        Raises:
            ModelError: naming every tensor that is missing, unknown or of another shape.
        """

    def kernels(self) -> str:
        """Return which kernels of the backend's own compute, with their version; nothing if none do."""

    def only_kernels(self, told: str) -> None:
        """Compute with no kernels from now on but those that :meth:`kernels` told, if they are here.

        What was computed without them goes on with the same roundings.
        """

    def memory(self) -> MemoryReading:
        """Return what the session holds of the device's memory."""

    def close(self) -> None:
        """Give everything back."""


class Backend(Protocol):
    """One way to compute, found under the entry-point group ``edgetune.backends``."""

    def usable(self, device: DeviceIdentity) -> Decision[bool]:
        """Say whether this backend can compute here on a device, and why; never raise.

        If it cannot, the reason ends with what to do.
        """

    def join(self, place: Place, timeout: float, device: Device) -> World:
        """Meet the other ranks of a world, each of which waits ``timeout`` seconds for another.

        ``device`` is the one that this rank computes on.

        Raises:
            UsageError: if this backend cannot, here.
            LostRankError: if some do not come.
        """

    def open(self, spec: RunSpec, model: LocalModel, world: World = ALONE) -> Session:
        """Load a model as planned and add its adapter, untrained.

        In a ``world`` every step is taken by all ranks: each computes the gradients of its own
        micro-batches, which may be none, and all make the same update from their sum.

        Raises:
            UsageError: naming everything of the spec that this backend cannot do.
            DeviceOutOfMemoryError: if memory runs out before the first step.
        """

    def measure(self, device: Device) -> Measurements:
        """Return how fast a device of this machine does what a step consists of."""

    def dry_run(self, spec: RunSpec, shape: ModelShape) -> Mapping[str, int]:
        """Return the peak bytes of live tensors by phase, found without computing anything.

        Raises:
            UsageError: if this backend cannot tell.
        """


class Attached(Generic[T]):
    """The adapters that a session holds besides its own, by name."""

    def __init__(self) -> None:
        """Hold none."""
        self._held: dict[str, T] = {}

    def add(self, name: str, make: Callable[[], T]) -> None:
        """Hold what ``make`` returns.

        Raises:
            UsageError: if the name is taken.
        """
        if name == DEFAULT_ADAPTER or name in self._held:
            raise UsageError(f"There is an adapter named {name!r} already. Give another name.")
        self._held[name] = make()

    def remove(self, name: str) -> None:
        """Let go of one.

        Raises:
            UsageError: if there is none of that name.
        """
        self.named(name)
        del self._held[name]

    def named(self, name: str) -> T:
        """Return one.

        Raises:
            UsageError: if there is none of that name.
        """
        if name not in self._held:
            known = ", ".join(map(repr, (DEFAULT_ADAPTER, *self._held)))
            raise UsageError(f"There is no adapter named {name!r}. There are: {known}.")
        return self._held[name]


def backend_names() -> tuple[str, ...]:
    """Return the names of the installed backends."""
    return tuple(sorted(point.name for point in entry_points(group=GROUP)))


def load_backend(name: str) -> Backend:
    """Return an installed backend.

    Raises:
        UsageError: if there is none of that name.
    """
    for point in entry_points(group=GROUP, name=name):
        backend: Backend = point.load()()
        return backend
    found = ", ".join(backend_names()) or "none"
    raise UsageError(f"Unsupported backend {name!r}. Installed: {found}.")
