"""How well labels are told apart: accuracy, macro F1, confusion, calibration.

Legend: N rows, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10
"""Of confidence, equally wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """One label: how many rows have it, and precision, recall and F1 of its predictions."""

    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScores:
    """How well labels are told apart.

    ``macro_f1`` is the mean F1 of the labels that rows have. ``ece`` is the expected calibration
    error: by how much confidence and accuracy differ. ``confusion`` counts, for each expected
    label, the predicted ones; ``always`` is the accuracy of guessing the most frequent label.
    """

    accuracy: float
    macro_f1: float
    ece: float
    always: float
    labels: Mapping[str, LabelScore]
    confusion: Mapping[str, Mapping[str, int]]


def score_labels(
    log_probs: NDArray[np.float64], expected: Sequence[int], names: Sequence[str]
) -> LabelScores:
    """Return how well the log-probabilities (N, K) of labels tell the expected ones, N at least 1."""
    shares = probabilities(log_probs)
    wanted, predicted = np.asarray(expected), log_probs.argmax(1)
    counts = confusion(wanted, predicted, len(names))
    found = {name: _of_label(counts, index) for index, name in enumerate(names)}
    there = [score.f1 for score in found.values() if score.rows]
    right = wanted == predicted
    return LabelScores(
        accuracy=float(right.mean()),
        macro_f1=float(np.mean(there)),
        ece=calibration_error(shares.max(1), right),
        always=float(counts.sum(1).max() / len(wanted)),
        labels=found,
        confusion={
            name: {other: int(counts[i, j]) for j, other in enumerate(names) if counts[i, j]}
            for i, name in enumerate(names)
            if counts[i].any()
        },
    )


def probabilities(log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities (N, K) of labels, given that it is one of them.

    >>> probabilities(np.log([[0.02, 0.06]])).round(6)
    array([[0.25, 0.75]])
    """
    shares = np.exp(log_probs - log_probs.max(1, keepdims=True))
    found: NDArray[np.float64] = shares / shares.sum(1, keepdims=True)
    return found


def confusion(
    expected: NDArray[np.int64], predicted: NDArray[np.int64], labels: int
) -> NDArray[np.int64]:
    """Return how often each label (K, rows) was predicted to be which (K, columns)."""
    counts = np.bincount(expected * labels + predicted, minlength=labels * labels)
    return counts.reshape(labels, labels)


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: bins weighted by their rows (Guo et al. 2017, eq. 3).

    >>> calibration_error(np.array([0.95, 0.95, 0.65, 0.65]), np.array([True, True, True, False]))
    0.1
    """
    bins = np.minimum(np.ceil(confidence * BINS).astype(int) - 1, BINS - 1).clip(0)
    sums = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(sums).sum().round(12) / len(confidence))


def _of_label(counts: NDArray[np.int64], index: int) -> LabelScore:
    right, rows, said = counts[index, index], counts[index].sum(), counts[:, index].sum()
    return LabelScore(
        rows=int(rows),
        precision=float(right / max(1, said)),
        recall=float(right / max(1, rows)),
        f1=float(2 * right / max(1, rows + said)),
    )
