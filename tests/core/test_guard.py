"""The guard over sequences of losses: what is suspicious, what is ordinary noise."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.guard import FEW, PATIENCE, WINDOW, GuardState, limit, ran_away


def after(losses: Iterable[float], state: GuardState | None = None) -> GuardState:
    """Return the state after steps with these losses."""
    state = state or GuardState()
    for loss in losses:
        state = state.after(loss)
    return state


def suspicious_at(losses: Iterable[float]) -> int | None:
    """Return the number of the first step at which the base would be asked."""
    state = GuardState()
    for number, loss in enumerate(losses, 1):
        state = state.after(loss)
        if state.suspicious:
            return number
    return None


def falling(count: int, *, noise: float = 0.0, seed: int = 0) -> list[float]:
    """Return losses of an ordinary run: from 2.5 towards 0.4, with log-normal noise."""
    draw = np.random.default_rng(seed)
    steps = np.arange(count)
    return list((0.4 + 2.1 * np.exp(-steps / 30)) * np.exp(draw.normal(0, noise, count)))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3, 0.6])
def test_noise_is_not_suspicious(noise: float) -> None:
    for seed in range(100):
        assert suspicious_at(falling(300, noise=noise, seed=seed)) is None


@pytest.mark.parametrize("at", [1, 2, 5, 10, 40, 150])
@pytest.mark.parametrize("level", [12.0, 60.0])
def test_a_jump_that_stays_is_suspicious(at: int, level: float) -> None:
    losses = [*falling(at, noise=0.1), *[level] * 20]
    assert suspicious_at(losses) == at + PATIENCE


def test_one_odd_step_less_than_patience_is_not() -> None:
    losses = falling(50)
    for odd in range(1, PATIENCE):
        state = after([*losses, *[50.0] * odd])
        assert len(state.suspects) == odd
        assert not after([0.5], state).suspects
    assert after([*losses, *[50.0] * PATIENCE]).suspicious


def test_what_was_cleared_is_part_of_the_past() -> None:
    state = after([*falling(50), *[5.0] * PATIENCE])
    assert state.suspicious
    cleared = state.cleared()
    assert cleared.losses[-PATIENCE:] == (5.0,) * PATIENCE
    assert len(cleared.losses) == WINDOW
    assert not cleared.suspects


def test_the_good_checkpoint_is_the_one_before_a_sound_step() -> None:
    state = after([2.0] * 10).checkpointed(10)
    assert (state.saved, state.good) == (10, 0)
    sound = after([2.0], state)
    assert (sound.good, sound.earlier) == (10, 0)
    assert (sound.target(11), sound.target(10)) == (10, 0)
    high = after([90.0, 90.0], state)
    assert high.good == 0
    assert high.checkpointed(12).good == 0
    assert after([2.0], high.checkpointed(12)).good == 12
    assert high.proven(12).good == 12
    assert (sound.proven(14).earlier, sound.proven(14, 6).earlier) == (10, 6)


def test_going_back_remembers_only_that_it_did() -> None:
    before = after([2.0] * 10).checkpointed(10)
    state = after([*[2.0] * 3, *[90.0] * PATIENCE], before)
    again = state.rewound(10, before)
    assert (again.losses, again.suspects) == (before.losses, ())
    assert (again.good, again.earlier, again.saved, again.rewinds) == (10, 10, 10, 1)
    assert (state.rate_factor, again.rate_factor, again.rewound(10, before).rate_factor) == (
        1,
        0.5,
        0.25,
    )


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=WINDOW))
def test_the_limit_is_above_most_of_the_past(losses: list[float]) -> None:
    above = [loss for loss in losses if loss > limit(losses)]
    assert len(above) <= len(losses) / 2
    if len(losses) < FEW:
        assert not above


@given(st.lists(st.floats(0, 1e3), max_size=80))
def test_nothing_is_lost_or_kept_for_ever(losses: list[float]) -> None:
    state = after(losses)
    assert len(state.losses) <= WINDOW
    recent = [*state.losses, *state.suspects]
    assert recent == losses[len(losses) - len(recent) :]
    assert state.first == (losses[0] if losses else None)


def test_only_what_is_worse_than_the_beginning_ran_away() -> None:
    assert ran_away([7.0], 2.0, 0.0)
    assert not ran_away([7.0], 6.9, 0.0)  # the rows are hard
    assert not ran_away([7.0], 2.0, 4.5)  # the method begins far from the base
    assert ran_away([7.0], 2.0, -1.5)
