"""The one renderer of a run's events: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import ceil
from typing import Any

from edgetune.cautions import gap_caution
from edgetune.cli.live import Stages, columns, fitting
from edgetune.cli.show import NORMAL, VERBOSE, say
from edgetune.events import (
    EndedEarly,
    Evaluated,
    Event,
    Judged,
    Piloted,
    PlanExceeded,
    RateChosen,
    RateRaced,
    Recovered,
    Rewound,
    SaveDue,
    Shared,
    Stepped,
    TrialSaveDue,
    UnderPressure,
)
from edgetune.settings.spec import to_plain
from edgetune.units import format_bytes, format_seconds
from edgetune.workflows.searching import is_pending
from edgetune.workflows.training import Run

SMOOTHING = 0.9
"""Weight of the past in the shown loss and speed."""

MOST_LINES = 20
"""Lines about steps in the log of a run."""

REMEMBERED = 1_000
"""Losses of steps before an evaluation that are held against it."""


class ProgressBar:
    """Prints loss, tokens a second, memory and the time that is left."""

    def __init__(self, run: Run, stages: Stages, *, judged: bool = True) -> None:
        """Show a run; on a terminal each step is written over the one before.

        ``judged`` is whether a verdict or samples follow the last step.
        """
        self._line, self._stages, self._awaited = stages.line, stages, judged
        self._steps = run.schedule.steps
        self._first = run.start.step
        self._plan = run.job.plan
        self._planned = run.job.plan.memory.peak_bytes
        self._mean_positions = run.job.batches.mean_positions
        self._piloted: Piloted | None = None
        self._loss: float | None = None
        self._seconds: float | None = None
        self._tokens: float | None = None
        self._last: Stepped | None = None
        self._evaluated: Evaluated | None = None
        self._base: Evaluated | None = None
        self._judged: Judged | None = None
        self._rewinds = run.start.guard.rewinds
        self._folder, self._receipt = run.folder, run.job.dataset.receipt
        self._losses: deque[float] = deque(maxlen=REMEMBERED)
        self._at_best: tuple[list[float], float] | None = None
        self._validated = len(run.job.dataset.validation) > 0
        searches = is_pending(run.folder, run.job.plan, run.start)
        begun = "Racing learning rates" if searches else "Trying the largest step"
        stages.begin(begun, kept=False)

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Stepped():
                self._step(event)
            case Evaluated():
                self._evaluation(event)
            case TrialSaveDue():
                pass
            case RateRaced():
                self._tell(fitting(_raced(event), self._width))
                self._stages.begin("Racing learning rates", kept=False)
            case RateChosen():
                self._tell(event.because)
                self._stages.begin("Trying the largest step", kept=False)
            case Piloted():
                self._pilot(event)
            case Shared():
                self._tell(f"Steps are shared {event.because}")
            case Recovered():
                self._tell(
                    f"step {event.step}: out of memory; continuing with {event.rows} rows at once"
                )
            case Rewound():
                self._loss, self._rewinds = None, self._rewinds + 1
                self._tell(
                    f"{event.because}. Going back to step {event.to}, from there with half the "
                    f"learning rate ({event.learning_rate:.3g})."
                )
            case EndedEarly():
                self._tell(
                    f"step {event.step}: no lower validation loss in {event.evaluations} "
                    "evaluations; training ends here (--patience 0 trains to the end)"
                )
                self._await_verdict()
            case PlanExceeded():
                self._tell(
                    f"Warning: the peak of {format_bytes(event.peak_bytes)} is above the "
                    f"{format_bytes(event.planned_bytes)} planned."
                )
            case UnderPressure():
                then = "waiting until that is over" if event.paused else "--pause would wait"
                self._tell(f"step {event.step}: the machine is {event.because}; {then}")
            case SaveDue():
                self._saved(event)
            case Judged():
                self._judged = event
                self._stages.end()

    def verdict(self) -> list[str]:
        """Return what the run came to, a line each; nothing if it was not judged."""
        if self._judged is None:
            return []
        verdict = self._judged.verdict
        more = (*verdict.advice, *self._judged.record["notes"])
        return [f"Verdict: {verdict.sentence}", *(f"- {text}" for text in more)]

    def cautions(self) -> list[str]:
        """Return what to know of the adapter before it is trusted."""
        found = None if self._at_best is None else gap_caution(*self._at_best)
        return [] if found is None else [found]

    def summary(self) -> dict[str, Any]:
        """Return the last figures, for ``--json``."""
        last, evaluated, base = self._last, self._evaluated, self._base
        pilot = self._piloted
        return {
            "steps": last.step if last else self._first,
            "loss": last.loss if last else None,
            "peak_bytes": last.peak_bytes if last else None,
            "planned_bytes": self._planned,
            "base_validation_loss": base.loss if base else None,
            "validation_loss": evaluated.loss if evaluated else None,
            **(
                {"validation_metrics": dict(evaluated.metrics)}
                if evaluated and evaluated.metrics
                else {}
            ),
            "kept": to_plain(self._folder.kept()),
            "cautions": [*self._receipt.cautions, *self.cautions()],
            "rewinds": self._rewinds,
            "pilot": pilot
            and {
                "peak_bytes": pilot.peak_bytes,
                "seconds_per_step": pilot.seconds,
                "planned_seconds_per_step": self._plan.time.seconds_per_step,
            },
            "verdict": self._judged and dict(self._judged.record),
        }

    def _pilot(self, event: Piloted) -> None:
        """Show what was measured beside the plan, and how long the run will take from here."""
        self._piloted = event
        text = f"pilot: measured {format_bytes(event.peak_bytes)} of {format_bytes(self._planned)} planned"
        if event.seconds:
            planned = self._plan.time.seconds_per_step
            beside = f" of {format_seconds(planned)} planned" if planned else ""
            self._seconds = event.seconds * self._mean_positions / event.positions
            left = (self._steps - event.step) * self._seconds
            text += (
                f"; {format_seconds(event.seconds)} a step{beside}; "
                f"about {format_seconds(left)} for {self._steps - event.step} steps"
            )
        self._tell(text)
        if self._validated and not event.step:
            self._stages.begin("Evaluating the base model", kept=False)
        else:
            self._await_step(event.step + 1)

    def _evaluation(self, event: Evaluated) -> None:
        if event.step:
            self._evaluated, when = event, f"step {event.step}"
            if event.best and event.perplexity is not None:
                self._at_best = list(self._losses), event.loss
            self._losses.clear()
        else:
            self._base, when = event, "before training"
        said = f"{when}: validation loss {event.loss:.4f}"
        if event.perplexity is not None:
            more = f", perplexity {event.perplexity:.2f}", f", {event.rows} rows"
        else:
            margin = event.metrics.get("rewards/margins")
            apart = "" if margin is None else f", margin {margin:.3f}"
            rows = "rows" if "kl" in event.metrics else "pairs"
            more = f"{apart}, accuracy {event.accuracy:.1%}", f", {event.rows} {rows}"
        best = " (best so far)" if event.best else ""
        self._tell(fitting([(said, *more, best), (said, more[0], best), (said, best)], self._width))
        if not event.step:
            self._await_step(1)

    def _step(self, event: Stepped) -> None:
        self._last = event
        self._losses.append(event.loss)
        self._stages.end()
        self._loss = _smooth(self._loss, event.loss)
        self._seconds = _smooth(self._seconds, event.seconds)
        self._tokens = _smooth(self._tokens, event.tokens)
        left = (self._steps - event.step) * self._seconds
        step = f"step {event.step}/{self._steps}"
        loss, smoothed = f"  loss {event.loss:.4f}", f", smoothed {self._loss:.4f}"
        speed, memory = self._tokens / self._seconds, _against(event.peak_bytes, self._planned)
        rest = f"  {format_seconds(left)} left"
        whole = step, loss, smoothed, f"  {speed:,.0f} tokens/s", f"  peak {memory}", rest
        if not self._line.live:
            told = is_told(event.step, self._first, self._steps)
            say("".join(whole), level=NORMAL if told else VERBOSE)
            return
        fast, peak = f"  {speed:,.0f} tok/s", f"  {memory}"
        narrower = (
            (step, loss, smoothed, fast, peak, rest), (step, loss, fast, peak, rest),
            (step, loss, peak, rest), (step, loss, rest),
        )  # fmt: skip
        self._line.show(fitting((whole, *narrower), self._width))

    def _await_step(self, step: int) -> None:
        if step <= self._steps:
            self._stages.begin(f"Step {step} of {self._steps}", kept=False)

    def _await_verdict(self) -> None:
        if self._awaited:
            self._stages.begin("Looking at what was learned and forgotten", kept=False)

    def _saved(self, event: SaveDue) -> None:
        say(f"step {event.state.step}: checkpoint saved", level=VERBOSE)
        if event.state.step == self._steps:
            self._await_verdict()

    @property
    def _width(self) -> int | None:
        """The columns that a line may have, None where no terminal limits it."""
        return columns() - 1 if self._line.live else None

    def _tell(self, text: str) -> None:
        """Print a line that stays."""
        self._stages.end()
        say(text)


def _raced(event: RateRaced) -> Iterator[tuple[str, ...]]:
    """Yield lines on a race, the longest first."""
    race = event.race
    at = f"rate {race.rate:g}", f", raced at {race.raced_at:g}", f" for {event.steps} steps"
    if race.loss is None or race.perplexity is None:
        yield ("learning ", *at, f": {race.because}")
        return
    loss, drift = f"loss {race.loss:.4f}", f"perplexity {race.perplexity:,.1f}"
    whole = f": validation {loss}, neutral {drift} ({format_seconds(race.seconds)})"
    yield ("learning ", *at, whole)
    yield (*at[:2], f": {loss}, neutral {drift}")
    yield (at[0], f": {loss}, {drift}")


def is_told(step: int, first: int, last: int) -> bool:
    """Tell whether a step has a line of its own where lines are not written over.

    At most :data:`MOST_LINES` of the steps after ``first`` have one: the first, the last, and those
    at even distances between them.

    >>> [step for step in range(1, 61) if is_told(step, 0, 60)]
    [1, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]
    """
    distance = max(1, ceil((last - first) / (MOST_LINES - 2)))
    return step in {first + 1, last} or step % distance == 0


def _against(measured: int, planned: int) -> str:
    """Return two amounts of bytes side by side.

    >>> _against(305_000_000, 318_000_000), _against(999_000_000, 1_200_000_000)
    ('305/318 MB', '999 MB/1.2 GB')
    """
    (found, unit), limit = format_bytes(measured).split(), format_bytes(planned)
    return f"{found}/{limit}" if limit.endswith(f" {unit}") else f"{found} {unit}/{limit}"


def _smooth(past: float | None, now: float) -> float:
    return now if past is None else SMOOTHING * past + (1 - SMOOTHING) * now
