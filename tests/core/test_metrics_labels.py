"""Metrics of labels against their definitions, written out row by row."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.metrics import labels
from edgetune.metrics.labels import BINS, calibration_error, probabilities, score_labels

NAMES = ("a", "b", "c")
rows = st.lists(st.tuples(st.integers(0, 2), st.lists(st.floats(-30, 0), min_size=3, max_size=3)),
                min_size=1, max_size=40)  # fmt: skip


def test_examples() -> None:
    found = doctest.testmod(labels)
    assert (found.failed, found.attempted) == (0, 2)


@given(rows)
def test_scores_are_their_definitions(drawn: list[tuple[int, list[float]]]) -> None:
    expected = [wanted for wanted, _ in drawn]
    log_probs = np.array([values for _, values in drawn])
    found = score_labels(log_probs, expected, NAMES)
    predicted = [values.index(max(values)) for _, values in drawn]
    pairs = list(zip(expected, predicted, strict=True))

    assert found.accuracy == pytest.approx(sum(w == p for w, p in pairs) / len(pairs))
    assert found.always == max(expected.count(k) for k in range(3)) / len(pairs)
    f1 = []
    for k, name in enumerate(NAMES):
        right, said = pairs.count((k, k)), predicted.count(k)
        score = found.labels[name]
        assert score.rows == expected.count(k)
        assert score.precision == (right / said if said else 0)
        assert score.recall == (right / score.rows if score.rows else 0)
        if score.rows:
            f1.append(2 * right / (score.rows + said))
    assert found.macro_f1 == pytest.approx(sum(f1) / len(f1))
    assert {
        (i, j): found.confusion.get(NAMES[i], {}).get(NAMES[j], 0)
        for i in range(3)
        for j in range(3)
    } == {(i, j): pairs.count((i, j)) for i in range(3) for j in range(3)}


@given(st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=1, max_size=40))
def test_calibration_error_is_the_weighted_difference_in_bins(
    drawn: list[tuple[float, bool]],
) -> None:
    error = 0.0
    for number in range(BINS):
        inside = [(c, r) for c, r in drawn if number < np.ceil(c * BINS) <= number + 1]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(r for _, r in inside) / len(inside)
            error += len(inside) / len(drawn) * abs(accuracy - confidence)
    confidences, right = (np.array(column) for column in zip(*drawn, strict=True))
    assert calibration_error(confidences, right) == pytest.approx(error, abs=1e-9)


def test_improbable_labels_have_probabilities_too() -> None:
    found = probabilities(np.array([[-2000.0, -2001.0]]))
    assert found.sum() == pytest.approx(1)
    assert found[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))
