"""What happens in a run, as the loop tells it, and where a run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune.guard import GuardState
from edgetune.patience import PatienceState
from edgetune.racing import Race
from edgetune.shares import Weights
from edgetune.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """An optimizer step was taken. ``seconds`` is its time, ``loss`` its mean over loss tokens."""

    step: int
    loss: float
    tokens: int
    loss_tokens: int
    seconds: float
    learning_rate: float
    grad_norm: float
    peak_bytes: int
    epoch: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The validation rows were evaluated after ``step`` steps; at step 0 by the base alone.

    ``best`` is whether no loss before was as low, that of the base included. An objective over
    answers has ``metrics`` and no perplexity, and ``accuracy`` counts its terms.
    """

    step: int
    loss: float
    perplexity: float | None
    accuracy: float
    rows: int
    best: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveDue:
    """The state should be saved now."""

    state: RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSaveDue:
    """The state should be written as a checkpoint is, and what was written removed."""

    state: RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Piloted:
    """A step, an evaluation and a save were tried and undone before the step after ``step``.

    ``seconds`` is the time of the step, ``positions`` the tokens and the padding that it was
    computed on, ``rows`` at most at once; ``peak_bytes`` is the peak of everything so far.
    """

    step: int
    peak_bytes: int
    seconds: float
    positions: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The pilot has shown how fast the ranks are: from now on steps are shared as ``state`` says.

    ``speeds`` are tokens and padding a second, by rank; 0 is one that had nothing to compute. ``gain``
    is how many times as fast as the fastest rank alone all are together, 0 where that is not known.
    """

    state: RunState
    speeds: tuple[float, ...]
    gain: float

    @property
    def because(self) -> str:
        """How steps are shared, and what that gains."""
        shares = ":".join(map(str, self.state.shares))
        said = f"{shares}, by the tokens a second of each rank in the pilot"
        if not self.gain:
            return f"{said}: not all ranks had something to compute"
        fastest = self.speeds.index(max(self.speeds))
        if self.gain < 1:
            return f"{said}. Rank {fastest} alone would be faster, by {1 / self.gain:.2f} times"
        return f"{said}: {self.gain:.2f} times as fast as rank {fastest} alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFigures:
    """What a rank took: its ``share`` of a step, seconds of its own work in one on average, its peak."""

    share: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksSeen:
    """What all ranks took for the steps up to ``step``, since this was told the last time."""

    step: int
    ranks: tuple[RankFigures, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRaced:
    """A learning rate was tried for ``steps`` steps, which were undone."""

    race: Race
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChosen:
    """The races are over; the run has this learning rate."""

    rate: float
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Memory ran out; the same micro-batches are computed again, ``rows`` rows at once."""

    step: int
    rows: int
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """The loss ran away at ``step``; the run is back after step ``to``, with a lower peak rate."""

    step: int
    to: int
    because: str
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedEarly:
    """The validation loss did not fall below ``lowest`` in ``evaluations`` evaluations."""

    step: int
    evaluations: int
    lowest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderPressure:
    """The machine came under pressure; the next step waits if ``paused``."""

    step: int
    because: str
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanExceeded:
    """The peak is above what was planned; told once."""

    step: int
    peak_bytes: int
    planned_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A run that was trained was looked at; ``record`` is what ``verdict.json`` says."""

    step: int
    verdict: Verdict
    record: Mapping[str, Any]


Event = (
    Stepped
    | Evaluated
    | SaveDue
    | TrialSaveDue
    | Piloted
    | Shared
    | RanksSeen
    | RateRaced
    | RateChosen
    | Recovered
    | Rewound
    | EndedEarly
    | UnderPressure
    | PlanExceeded
    | Judged
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands, besides its tensors: what a resumed run needs to go on alike.

    ``base_loss`` is the validation loss of the base alone, None if there are no validation rows;
    ``best_step`` is the step with the lowest validation loss, None while none was below that of
    the base. ``rows`` is the largest micro-batch known to fit, 0 while none has failed. ``shares``
    says how much of a step each part is (:mod:`edgetune.shares`), nothing where they are equal.
    ``unevaluated`` is whether the evaluation after this step is due and still to be made.
    """

    step: int = 0
    base_loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    rows: int = 0
    shares: Weights = ()
    unevaluated: bool = False
    guard: GuardState = field(default_factory=GuardState)
    patience: PatienceState = field(default_factory=PatienceState)

    @property
    def is_best(self) -> bool:
        """Whether the validation loss is the lowest so far."""
        return self.best_step == self.step

    @property
    def loss_to_beat(self) -> float | None:
        """The lowest validation loss so far, the base's included."""
        return self.base_loss if self.best_loss is None else self.best_loss
