"""Which token comes next, by its logits: the most probable one, or one that is drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import GenerateOptions


def choose(
    logits: NDArray[np.float32], options: GenerateOptions, draws: np.random.Generator
) -> int:
    """Return a token by its logits (V,).

    With ``top_p`` one of the fewest most probable ones that have this probability together, but
    always one (nucleus sampling, Holtzman et al. 2019). One number is drawn for each token.
    """
    if options.greedy:
        return int(logits.argmax())
    scores = logits.astype(np.float64) / options.temperature
    weights = np.exp(scores - scores.max())
    if options.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        sums = weights[order].cumsum()
        before = np.concatenate([[0.0], sums[:-1]])
        weights[order[before >= options.top_p * sums[-1]]] = 0.0
    reached = weights.cumsum()
    found = int(np.searchsorted(reached, draws.random() * reached[-1], side="right"))
    return min(found, len(reached) - 1)
