"""When a training loss has run away, judged from the losses alone.

A loss is *high* if it is far above the run's own past, by median and spread, which a few odd rows
do not move. ``PATIENCE`` high losses in a row are suspicious: rows that are hard to predict look
the same, so the base model is asked about the very same rows (:func:`ran_away`), and only a model
that predicts them worse than the one training began with has run away.

The size of a finite gradient is no sign: it is clipped, so what it spoils shows in the loss. But
without any gradient nothing is ever learned again (:func:`is_stuck`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

PATIENCE = 5
"""High losses in a row that are suspicious."""

WINDOW = 32
"""Losses that the past consists of."""

FEW = 8
"""With fewer losses than this their spread is not known."""

SPREADS = 6.0
"""A loss so many standard deviations above the median is high."""

LEAST_SPREAD = 0.1
"""A standard deviation is taken to be no less than this share of the median."""

WORSE = 1.2
"""A model whose loss is so many times that at the beginning has run away."""

LEARNED = 1e-3
"""Below this loss everything is learned, and a gradient may round to zero."""

REWINDS = 3
"""Times that a run goes back and halves its learning rate before it gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardState:
    """What the guard remembers: a part of the state of a run, so that a resumed one is the same.

    ``first`` is the loss of the first step, ``losses`` are the last ones that were not high, then
    come the ``suspects``. ``saved`` is the step of the newest checkpoint that was due, ``good``
    that of the newest one after which a loss was not high, where a run that ran away goes back
    to, ``earlier`` that of the one before it. ``rewinds`` counts how often a run went back.
    """

    first: float | None = None
    losses: tuple[float, ...] = ()
    suspects: tuple[float, ...] = ()
    saved: int = 0
    good: int = 0
    earlier: int = 0
    rewinds: int = 0

    @property
    def rate_factor(self) -> float:
        """What the learning rate is multiplied by."""
        return 0.5**self.rewinds

    @property
    def suspicious(self) -> bool:
        """Whether the base is to be asked."""
        return len(self.suspects) >= PATIENCE

    def after(self, loss: float) -> GuardState:
        """Return the state after a step with a finite loss."""
        first = loss if self.first is None else self.first
        suspects = (*self.suspects, loss)
        if self.losses and loss > limit(self.losses):
            return replace(self, first=first, suspects=suspects)
        return replace(self, first=first, suspects=suspects).cleared()

    def cleared(self) -> GuardState:
        """Return the state after what was high was found to be in order."""
        losses = (*self.losses, *self.suspects)[-WINDOW:]
        earlier = self.earlier if self.saved == self.good else self.good
        return replace(self, losses=losses, suspects=(), good=self.saved, earlier=earlier)

    def checkpointed(self, step: int) -> GuardState:
        """Return the state after a checkpoint that was due."""
        return replace(self, saved=step)

    def proven(self, step: int, best: int | None = None) -> GuardState:
        """Return the state at a checkpoint that the validation rows speak for.

        The one before it is the ``best`` until now, if there is one: its adapter may be wanted.
        """
        state = self.checkpointed(step).cleared()
        return state if best is None else replace(state, earlier=best)

    def target(self, step: int) -> int:
        """Return where a run that ran away in the step after ``step`` goes back to.

        Where the step after the good checkpoint fails, that one is not good enough.
        """
        return self.good if step > self.good else self.earlier

    def rewound(self, to: int, before: GuardState) -> GuardState:
        """Return the state after going back to a checkpoint, which was in ``before``."""
        return replace(before, saved=to, good=to, earlier=to, rewinds=self.rewinds + 1)


def limit(losses: Sequence[float]) -> float:
    """Return the loss above which one is high after ``losses``, of which there is at least one.

    >>> limit([2.0]), limit([2.0] * 8), round(limit([1.5, 2.0, 2.5] * 3), 2)
    (4.0, 3.2, 6.45)
    """
    center = median(losses)
    spread = 1.4826 * median(abs(loss - center) for loss in losses)  # of normal noise
    high = center + SPREADS * max(spread, LEAST_SPREAD * center)
    return high if len(losses) >= FEW else max(high, 2 * max(losses))


def is_stuck(loss: float, grad_norm: float) -> bool:
    """Tell whether nothing is left to learn from: numbers overflowed, which norms turn into zeros.

    >>> is_stuck(6.93, 0.0), is_stuck(0.0, 0.0), is_stuck(6.93, 1e-9)
    (True, False, False)
    """
    return grad_norm == 0 and loss > LEARNED


def ran_away(losses: Sequence[float], base: float, start: float) -> bool:
    """Tell whether a model is worse than it began: its losses and the base's on the same rows.

    ``start`` is by how much the first loss was above that of the base: some methods begin with
    random prompts.

    >>> ran_away([4.0, 5.0], 2.3, 0.0), ran_away([4.0, 5.0], 2.3, 1.7), ran_away([4.0], 3.9, 0.0)
    (True, False, False)
    """
    return fmean(losses) > WORSE * (base + max(0.0, start))
