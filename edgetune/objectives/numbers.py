"""Functions of a real number that hold in both tails."""

from __future__ import annotations

from math import exp, expm1, log, log1p

_LEAST_DOUBT = 1e-7
"""A token's probability of 1 is taken to be so much less: float32 knows no more."""


def softplus(x: float) -> float:
    """Return log(1 + exp(x)), which is -log sigmoid(-x).

    >>> softplus(0.0) == log(2), softplus(-800.0), softplus(800.0)
    (True, 0.0, 800.0)
    """
    return max(x, 0.0) + log1p(exp(-abs(x)))


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)).

    >>> sigmoid(0.0), sigmoid(800.0), sigmoid(-800.0)
    (0.5, 1.0, 0.0)
    """
    if x >= 0:
        return 1 / (1 + exp(-x))
    grown = exp(x)
    return grown / (1 + grown)


def log_odds(log_p: float) -> float:
    """Return log(p / (1 - p)) of a log-probability.

    >>> round(log_odds(log(0.75)), 12) == round(log(3), 12)
    True
    """
    bounded = min(log_p, -_LEAST_DOUBT)
    return bounded - log(-expm1(bounded))


def log_odds_slope(log_p: float) -> float:
    """Return the derivative of :func:`log_odds`, 1 / (1 - p).

    >>> round(log_odds_slope(log(0.75)), 12)
    4.0
    """
    return -1 / expm1(min(log_p, -_LEAST_DOUBT))
