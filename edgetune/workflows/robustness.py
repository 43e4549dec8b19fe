"""Robust prefixes: how far attacks on the text mislead a prefix, and what tuning against them mends.

Yang and Liu 2022 ("On Robust Prefix-Tuning for Text Classification"): where an answer begins, the
output of each block lies near a plane if the answer is right. For each batch of rows that may have been
attacked a prefix is added to the trained one, begun at zero, and tuned so that the outputs come
nearer to those planes. It needs no answers, and is gone with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import EvalResult, Session, Tensors
from edgetune.data import Examples, MicroBatch
from edgetune.data.attacks import ATTACKS
from edgetune.data.batches import micro_batch_of
from edgetune.data.schedule import PaddedSchedules
from edgetune.errors import CheckFailedError, UsageError
from edgetune.insight.planes import Plane
from edgetune.methods.prefix import Prefix
from edgetune.settings.spec import ADAMW, Interval, check_numbers, knob
from edgetune.workflows.attacked_rows import AttackableRows, answered_rows
from edgetune.workflows.in_parts import in_parts
from edgetune.workflows.opened import Opened
from edgetune.workflows.over import Over
from edgetune.workflows.references import open_references, read_adapted

SHARE: Final = 0.95
"""Of the variance of right answers, what the planes hold."""

FEWEST: Final = 8
"""Rows answered right, of which planes are made at least."""

TRIES: Final = 4
"""Variants of a row that an attack chooses from."""

CLEAN: Final = "none"
"""What a table calls rows that nobody attacked."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """How a prefix is tuned for a batch, by Adam."""

    tuning_steps: int = knob(10, "Steps for each batch.", interval=Interval(low=1, high=1000))
    tuning_rate: float = knob(0.05, "Their learning rate.", interval=Interval(above=0, high=10))

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        check_numbers(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """Rows under an attack: how many are answered right with the prefix, and with the one tuned."""

    attack: str
    right: int
    steered: int
    before: float
    """Mean distance from the planes, a row, all blocks together."""
    after: float
    """The same at the last step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """What attacks on a prefix come to."""

    name: str
    rows: int
    known: int
    """Clean rows answered right, of which the planes are made."""
    dimensions: tuple[int, ...]
    """Of the plane of each block."""
    attacks: tuple[Attacked, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessRequest:
    """What was asked for: ``clean`` are the rows of which planes are made."""

    name: str
    data: Path
    clean: Path
    over: Over = field(default_factory=Over)
    steering: Steering = field(default_factory=Steering)
    tries: int = TRIES
    """Variants of a row, of which the attack takes the one that the prefix predicts worst."""
    seed: int = 0


def robustness(asked: RobustnessRequest, tell: Callable[[str], None]) -> Robustness:
    """Return how a prefix does on attacked rows, alone and with one that is tuned for each batch.

    Raises:
        UsageError: if it is no prefix, rows are preferences or too long, or too few clean ones are
            answered right.
        DataError: if rows have no prompt.
        CheckFailedError: if numbers stop being finite.
        ModelError: if the adapter or its base is missing or damaged.
    """
    if asked.tries < 1:
        raise UsageError(f"--tries must be 1 or more; found {asked.tries}.")
    kind = read_adapted(asked.name, asked.over).adapter.method.kind
    if kind != Prefix.kind:
        raise UsageError(f"{asked.name} is {kind}: a prefix (--method prefix) is tuned this way.")
    (opened,) = open_references((asked.name,), asked.over)
    with closing(opened.session), TemporaryDirectory() as scratch:
        own = AttackableRows.read(opened, asked.data)
        planes, known = _planes(opened, answered_rows(opened, asked.clean))
        found = []
        for attack in (CLEAN, *ATTACKS):
            tell(f"Attack: {attack}")
            rows = own.rows
            if attack != CLEAN:
                losses, folder = partial(_losses, opened), Path(scratch)
                rows = own.attacked(attack, losses, folder, tries=asked.tries, seed=asked.seed)
            found.append(_outcome(opened, rows, attack, planes, asked.steering))
    return Robustness(
        name=asked.name,
        rows=len(own.rows),
        known=known,
        dimensions=tuple(len(plane.directions) for plane in planes),
        attacks=tuple(found),
    )


class Distance:
    """How far the outputs of blocks are from planes, and the gradient of that (a ``Pull``)."""

    def __init__(self, planes: Sequence[Plane]) -> None:
        """Begin with nothing."""
        self.planes = planes
        self.total = 0.0

    def __call__(self, layer: int, outputs: Floats) -> Floats:
        """Add the distances of outputs (B, D) of a block; return their gradients."""
        off = self.planes[layer].off(outputs)
        lengths = np.linalg.norm(off, axis=1, keepdims=True)
        self.total += float(lengths.sum())
        grads: Floats = (off / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
        return grads


@contextmanager
def steered(
    session: Session, batch: MicroBatch, planes: Sequence[Plane], steering: Steering
) -> Iterator[list[float]]:
    """Tune what is added to the session's own adapter for a batch; take it away at the end.

    Yields the distance before each step.

    Raises:
        CheckFailedError: if it is not finite.
    """
    own = {name: np.array(x, np.float32) for name, x in session.adapter_tensors().items()}
    added, distances = _Added(own, steering.tuning_rate), []
    try:
        for _ in range(steering.tuning_steps):
            distance = Distance(planes)
            added.step(session.pull(batch, distance))
            distances.append(distance.total)
            if not isfinite(distance.total):
                raise CheckFailedError(
                    f"What the blocks compute is not finite at step {len(distances)} of tuning "
                    f"({distance.total}). Lower --tuning-rate, or train the prefix again."
                )
            session.restore({name: x + added.numbers[name] for name, x in own.items()})
        yield distances
    finally:
        session.restore(own)


class _Added:
    """What is added to tensors, begun at zero, on its way down by Adam without weight decay."""

    def __init__(self, own: Mapping[str, Floats], rate: float) -> None:
        self.numbers = {name: np.zeros_like(x) for name, x in own.items()}
        self._means = {name: np.zeros_like(x) for name, x in own.items()}
        self._squares = {name: np.zeros_like(x) for name, x in own.items()}
        self._rate, self._steps = rate, 0

    def step(self, grads: Tensors) -> None:
        """Take one step."""
        self._steps += 1
        one, two = ADAMW.beta1, ADAMW.beta2
        rate = self._rate * np.sqrt(1 - two**self._steps) / (1 - one**self._steps)
        for name, numbers in self.numbers.items():
            grad = np.asarray(grads[name], np.float32)
            mean, square = self._means[name], self._squares[name]
            mean += (1 - one) * (grad - mean)
            square += (1 - two) * (grad**2 - square)
            numbers -= (rate * mean / (np.sqrt(square) + ADAMW.eps)).astype(np.float32)  # noqa: PLW2901


def _planes(opened: Opened, rows: Examples) -> tuple[list[Plane], int]:
    """Return the plane of each block's outputs, and of how many right answers they are made."""

    def of_right(parts: Sequence[MicroBatch]) -> list[Floats]:
        return [opened.session.activations(part)[:, _right(opened, part)] for part in parts]

    found = [
        outputs
        for _, batch in _batches(opened, rows)
        for outputs in in_parts(opened, batch, of_right)
    ]
    known = sum(outputs.shape[1] for outputs in found)
    if known < FEWEST:
        raise UsageError(
            f"Of {len(rows)} clean rows {known} are answered right by {opened.name}, and planes are made "
            f"of {FEWEST} at least. Give more rows that it was trained on, or train it longer."
        )
    outputs = np.concatenate(found, axis=1)
    if not np.isfinite(outputs).all():
        raise CheckFailedError(
            f"What the blocks of {opened.name} compute is not finite. Train it again, with a lower "
            "learning rate or in another --compute-dtype."
        )
    return [Plane.near(layer, SHARE) for layer in outputs], known


def _outcome(
    opened: Opened, rows: Examples, attack: str, planes: Sequence[Plane], steering: Steering
) -> Attacked:

    def counted(parts: Sequence[MicroBatch]) -> list[tuple[float, ...]]:
        found: list[tuple[float, ...]] = []
        for part in parts:
            right = _right(opened, part).sum()
            with steered(opened.session, part, planes, steering) as distances:
                found.append((right, _right(opened, part).sum(), distances[0], distances[-1]))
        return found

    each = [one for _, batch in _batches(opened, rows) for one in in_parts(opened, batch, counted)]
    right, mended, before, after = (sum(column) for column in zip(*each, strict=True))
    return Attacked(
        attack=attack, right=int(right), steered=int(mended),
        before=float(before) / len(rows), after=float(after) / len(rows),
    )  # fmt: skip


def _right(opened: Opened, batch: MicroBatch) -> NDArray[np.bool_]:
    """Return which rows are answered right (B,): each token of the answer is the most probable."""
    return np.array([one.correct == one.loss_tokens for one in _each_row(opened, batch)])


def _each_row(opened: Opened, batch: MicroBatch) -> Sequence[EvalResult]:
    return opened.session.evaluate_rows(batch, [opened.adapter] * len(batch.tokens))


def _batches(opened: Opened, rows: Examples) -> Iterator[tuple[NDArray[np.int64], MicroBatch]]:
    """Yield micro-batches of rows of like lengths, each with the numbers of its rows."""
    longest = int(rows.lengths.max())
    micro_batch = opened.plan.choice.micro_batch
    schedule = PaddedSchedules(rows.lengths, longest, micro_batch).by_length()
    for index in range(len(schedule)):
        yield np.concatenate(schedule.rows_of(index)), micro_batch_of(rows, schedule, index)


def _losses(opened: Opened, rows: Examples) -> NDArray[np.float64]:
    """Return the loss of each row."""
    found = np.zeros(len(rows))

    def losses(parts: Sequence[MicroBatch]) -> list[float]:
        results = (one for part in parts for one in _each_row(opened, part))
        return [one.loss_sum / one.loss_tokens for one in results]

    for numbers, batch in _batches(opened, rows):
        found[numbers] = in_parts(opened, batch, losses)
    return found
