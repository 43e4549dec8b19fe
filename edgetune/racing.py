"""Which learning rates or methods are raced before a run, and which of them wins.

Each is tried from the same start on the same rows for a tenth of the steps, and judged by two
figures: the validation loss, and the perplexity on a neutral text, which tells how far the model
drifted from its base. The loss alone would choose rates that destroy the model.

The shorter a run, the higher the rate that is best for it: by its length to the power of -0.32 for
language models (Bjorck et al. 2024, arXiv 2409.19913). Races at the rates themselves would choose one
that is too high for the run (docs/runs.md has an example). So each is raced at a multiple of itself,
the square root of how many times longer the run is, which errs on the mild side.

>>> raced = [Race(rate=1e-3, loss=1.0, perplexity=60.0), Race(rate=3e-3, loss=0.97, perplexity=95.0)]
>>> print(winner(raced, 1e-3).rate)
0.001
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt
from typing import Final

from edgetune.errors import UsageError

FACTOR: Final = 3.0
"""Between a rate and the next one that is tried."""

SHARE: Final = 0.1
"""Of the steps of the run, how many a race has."""

FEWEST: Final = 3
"""Steps of a race at least."""

MOST: Final = 4
"""Rates that are raced at most."""

COST: Final = 0.45
"""Of the steps of the run, how many all races have together at most."""

CLOSE: Final = 0.05
"""A rate whose loss is higher by no more than this share wins if it drifts less. Losses of a tenth
of a run are no nearer than this to those of the whole."""

WILD: Final = 1.5
"""A rate whose perplexity is so many times that of the default drifts too far, and wins against a
milder one only if its loss is lower by ..."""

MUCH: Final = 0.25
"""... this share. Drift grows on after a tenth of the run: twice the default's is to be avoided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """What a learning rate or a method came to; without figures ``because`` says why."""

    rate: float
    method: str = ""
    """The method that was raced, where methods are."""
    raced_at: float = 0.0
    """The rate that stood for it in the race, which is shorter than the run."""
    loss: float | None = None
    perplexity: float | None = None
    """On the neutral text."""
    seconds: float = 0.0
    because: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether there are figures to judge by."""
        return self.loss is not None and self.perplexity is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How many steps a race has, and how many races there are at most."""

    steps: int
    races: int
    stretch: float
    """What a rate of the run is multiplied by in a race."""

    def raced_at(self, rate: float) -> float:
        """Return the rate that stands in a race for one of the run."""
        return _rounded(rate * self.stretch)


def lengths(steps: int, what: str = "lr", *, most: int = 0) -> Lengths:
    """Return how a run of so many steps is raced for.

    A run that may end early has ``most`` steps, and these in any case: what races cost is a share of
    what the run takes at least.

    Raises:
        UsageError: if it is too short for two races.

    >>> found = lengths(200)
    >>> found.steps, found.races, found.raced_at(1e-3)
    (20, 4, 0.00316)
    """
    each = max(FEWEST, ceil(SHARE * steps))
    races = min(MOST, int(COST * steps / each))
    if races < 2:
        early = f" that may end early, of {most} steps," if most > steps else ""
        raise UsageError(
            f"--search {what} races for a tenth of the steps, at least {FEWEST}, and a run of "
            f"{steps} steps{early} is too short for that. Train longer, "
            f"{'with --patience 0, ' if early else ''}or give a "
            f"--{'learning-rate' if what == 'lr' else 'method'}."
        )
    return Lengths(steps=each, races=races, stretch=sqrt(steps / each))


def following(raced: Sequence[Race], default: float, most: int) -> float | None:
    """Return the rate to race next, None if the winner is between two others or ``most`` are raced.

    The default comes first, then a higher one; from there on the way leads where it gets better.

    >>> following([], 1e-3, 4), following([Race(rate=1e-3, loss=1.0, perplexity=60.0)], 1e-3, 4)
    (0.001, 0.003)
    """
    if not raced:
        return default
    if len(raced) >= most:
        return None
    rates = [one.rate for one in raced]
    best = winner(raced, default)
    if best is not None and best.rate == max(rates):
        return _rounded(max(rates) * FACTOR)
    if best is None or best.rate == min(rates):
        return _rounded(min(rates) / FACTOR)
    return None


def winner(raced: Sequence[Race], default: float) -> Race | None:
    """Return the race with the lowest loss, but for one that is close to it and drifts less.

    None if none has figures.
    """
    return _winner(raced, lambda one: one.rate == default)


def best_method(raced: Sequence[Race], usual: str) -> Race | None:
    """Return the race of the method that wins by the same rule, ``usual`` being the default."""
    return _winner(raced, lambda one: one.method == usual)


def _winner(raced: Sequence[Race], is_usual: Callable[[Race], bool]) -> Race | None:
    whole = sorted((one for one in raced if one.is_whole), key=_loss)
    if not whole:
        return None
    usual = next((one for one in whole if is_usual(one)), min(whole, key=_perplexity))
    mild = [one for one in whole if _perplexity(one) <= WILD * _perplexity(usual)]
    lowest = whole[0]
    if mild and _is_near(mild[0], lowest, MUCH):
        lowest = mild[0]
    near = [one for one in whole if _loss(one) >= _loss(lowest) and _is_near(one, lowest, CLOSE)]
    return min(near, key=_perplexity)


def _is_near(one: Race, lowest: Race, share: float) -> bool:
    """Tell whether a loss is higher than the lowest one by no more than a share of it."""
    return _loss(one) - _loss(lowest) <= share * abs(_loss(one))


def because(raced: Sequence[Race], default: float) -> str:
    """Return a sentence on why the winner won."""
    best = winner(raced, default)
    if best is None:
        return (
            f"learning rate {default:g}: the usual one, as none that was raced kept a finite loss"
        )
    others = ", ".join(f"{one.rate:g}" for one in raced if one.rate != best.rate)
    return f"learning rate {best.rate:g}: raced against {others}, {_how(raced, best)}"


def why_method(raced: Sequence[Race], usual: str) -> str:
    """Return a sentence on why a method won."""
    best = best_method(raced, usual)
    if best is None:
        return f"method {usual}: the usual one, as none that was raced kept a finite loss"
    others = ", ".join(
        one.method + (f" ({one.loss:.4f}, {one.perplexity:,.1f})" if one.is_whole else "")
        for one in raced
        if one.method != best.method
    )
    return f"method {best.method}: raced against {others}, {_how(raced, best)}"


def _how(raced: Sequence[Race], best: Race) -> str:
    """Return what is better about a winner."""
    figures = f"validation loss {best.loss:.4f}, neutral perplexity {best.perplexity:,.1f}"
    lower = any(one.is_whole and _loss(one) < _loss(best) for one in raced)
    how = "close to the lowest loss with less drift" if lower else "the lowest loss"
    return f"{how} ({figures})"


def _loss(race: Race) -> float:
    return inf if race.loss is None else race.loss


def _perplexity(race: Race) -> float:
    return inf if race.perplexity is None else race.perplexity


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
