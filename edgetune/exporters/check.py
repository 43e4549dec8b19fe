"""Is the merged model the one that was trained? Its next-token distributions say it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import CheckFailedError, UsageError

Logits = Callable[[Sequence[int]], NDArray[Any]]
"""From the tokens of one row to the logits (tokens, vocabulary) after each of them."""

_TOKENS_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeCheck:
    """How far the merged model is from base and adapter: KL(adapted || merged) in nats a token."""

    kl_mean: float
    kl_max: float
    top1_agreement: float
    """Share of the tokens after which both find the same token the most probable."""
    rows: int
    tokens: int
    effect: float | None = None
    """KL(adapted || base) on average: what the adapter does at all; ``None`` if not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeLimits:
    """What a good merge stays within: rounding to 16 bits does, a lost adapter does not."""

    kl_mean: float = 0.01
    kl_max: float = 1.0
    top1_agreement: float = 0.97
    effect_share: float = 0.1
    """Of the adapter's effect: KL grows with the square, so that 0.1 is a third of the update."""
    noise: float = 1e-3
    """KL that 16-bit arithmetic makes by itself; no share of a smaller effect can be told."""


LIMITS: Final = MergeLimits()


def compare(
    reference: Logits,
    candidate: Logits,
    rows: Sequence[Sequence[int]],
    *,
    base: Logits | None = None,
) -> MergeCheck:
    """Compare the merged model (candidate) with base and adapter (reference) on rows of tokens.

    With ``base``, the model without the adapter, the adapter's effect is measured too, so that
    the loss of a small one is found.

    Raises:
        UsageError: if there are no tokens to compare on.
    """
    kept = [row for row in rows if len(row)]
    if not kept:
        raise UsageError("A merge is checked on rows of tokens, and there is none.")
    merged, effects, agreements = [], [], []
    for row in kept:
        adapted, found = reference(row), candidate(row)
        merged.append(_divergences(adapted, found))
        agreements.append(adapted.argmax(-1) == found.argmax(-1))
        if base is not None:
            effects.append(_divergences(adapted, base(row)))
    kl = np.concatenate(merged)
    return MergeCheck(
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1_agreement=float(np.concatenate(agreements).mean()),
        rows=len(kept),
        tokens=len(kl),
        effect=float(np.concatenate(effects).mean()) if effects else None,
    )


_REMEDY: Final = (
    "Export again with --dtype float32; if that fails too, check that the base is the model that "
    "the adapter was trained on."
)


def require(check: MergeCheck, limits: MergeLimits = LIMITS, remedy: str = _REMEDY) -> None:
    """Accept a merge that is within the limits.

    Raises:
        CheckFailedError: with the figures and what to do, also if a figure is not a number.
    """
    mean = _mean_limit(check, limits)
    within = (
        check.kl_mean <= mean
        and check.kl_max <= limits.kl_max
        and check.top1_agreement >= limits.top1_agreement
    )
    if not within:
        raise CheckFailedError(
            f"The merged model is not the one that was trained: over {check.tokens} tokens of "
            f"{check.rows} rows, KL {check.kl_mean:.2g} on average (limit {mean:.2g}), "
            f"{check.kl_max:.2g} at most (limit {limits.kl_max:.2g}), the same next token after "
            f"{check.top1_agreement:.1%} (limit {limits.top1_agreement:.0%}). {remedy}"
        )


def _mean_limit(check: MergeCheck, limits: MergeLimits) -> float:
    if check.effect is None:
        return limits.kl_mean
    return min(limits.kl_mean, max(limits.noise, limits.effect_share * check.effect))


def _divergences(reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.float64]:
    """Return the KL divergence after each token, some tokens' float64 logits at a time."""
    starts = range(0, len(reference), _TOKENS_AT_ONCE)
    spans = (slice(start, start + _TOKENS_AT_ONCE) for start in starts)
    return np.concatenate([_divergence(reference[span], candidate[span]) for span in spans])


def _divergence(reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.float64]:
    p, q = _log_softmax(reference), _log_softmax(candidate)
    kl: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return np.maximum(kl, 0.0)  # rounding can leave a little less than nothing


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    log_probabilities: NDArray[np.float64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return log_probabilities
