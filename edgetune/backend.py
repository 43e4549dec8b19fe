"""What every backend implements, and how one is found.

One optimizer step is the unit: finer would cut a compiled or a streamed step in pieces,
coarser would copy the loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetune.data.batch import MicroBatch
from edgetune.device import Device
from edgetune.errors import OutOfMemoryError, UsageError
from edgetune.model import LocalModel
from edgetune.plan import Plan
from edgetune.spec import Decision
from edgetune.speed import Measurements

GROUP = "edgetune.backends"

Tensors = Mapping[str, NDArray[np.generic]]


class DeviceOutOfMemoryError(OutOfMemoryError):
    """A step did not fit; the session is as it was before the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """``loss`` is the mean over the loss tokens of the step; ``grad_norm`` is before clipping."""

    loss: float
    grad_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """Sums over the evaluated rows, so that parts can be added."""

    loss_sum: float
    loss_tokens: int
    correct: int
    """Loss tokens that were the most probable ones."""
    rows: int

    def __add__(self, other: EvalResult) -> EvalResult:
        """Return the sums over both."""
        return EvalResult(
            loss_sum=self.loss_sum + other.loss_sum,
            loss_tokens=self.loss_tokens + other.loss_tokens,
            correct=self.correct + other.correct,
            rows=self.rows + other.rows,
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
    """How text is continued. A ``temperature`` of zero takes the most probable token."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    end_tokens: frozenset[int] = frozenset()


class Session(Protocol):
    """An opened model with its adapter and its optimizer."""

    def step(
        self, micro_batches: Sequence[MicroBatch], *, loss_tokens: int, learning_rate: float
    ) -> StepResult:
        """Take one optimizer step on ``sum(loss over loss tokens) / loss_tokens``.

        Raises:
            DeviceOutOfMemoryError: if it does not fit; nothing has changed then.
            DivergedError: if loss or gradients are not finite; nothing has changed then.
        """

    def evaluate(self, micro_batches: Iterable[MicroBatch], *, adapted: bool = True) -> EvalResult:
        """Return the loss over micro-batches, with the adapter or of the base model alone.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
        """

    def generate(
        self, prompt: Sequence[int], options: GenerateOptions, *, adapted: bool = True
    ) -> Iterator[int]:
        """Yield the tokens that follow a prompt, an end token included."""

    def logits(self, tokens: Sequence[int], *, adapted: bool = True) -> NDArray[np.float32]:
        """Return the logits (T, V) after each of T tokens of one row."""

    def adapter_tensors(self) -> Tensors:
        """Return the trained tensors by the names of :mod:`edgetune.methods`."""

    def optimizer_tensors(self) -> Tensors:
        """Return the optimizer's state, enough to go on bit for bit."""

    def restore(self, adapter: Tensors, optimizer: Tensors | None = None) -> None:
        """Take over saved tensors.

        Raises:
            ModelError: naming every tensor that is missing, unknown or of another shape.
        """

    def memory(self) -> MemoryReading:
        """Return what the session holds of the device's memory."""

    def close(self) -> None:
        """Give everything back."""


class Backend(Protocol):
    """One way to compute, found under the entry-point group ``edgetune.backends``."""

    def usable(self) -> Decision[bool]:
        """Say whether this backend can run here and why; never raise."""

    def open(self, plan: Plan, model: LocalModel) -> Session:
        """Load a model as planned and add its adapter, untrained."""

    def measure(self, device: Device) -> Measurements:
        """Return how fast a device of this machine does what a step consists of."""

    def dry_run(self, plan: Plan) -> Mapping[str, int]:
        """Return the peak bytes of live tensors by phase, found without computing anything.

        Raises:
            UsageError: if this backend cannot tell.
        """


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
