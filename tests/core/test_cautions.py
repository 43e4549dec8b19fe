"""What is said of few rows, tiny validation sets and gaps between losses."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune import cautions
from edgetune.cautions import gap_caution, row_cautions


def test_examples() -> None:
    assert doctest.testmod(cautions).failed == 0
    assert doctest.testmod(cautions).attempted == 6


@pytest.mark.parametrize(
    ("trained", "validation", "expected"),
    [
        (1, 1, ["There is only 1 row to train on", "There is only 1 row for validation"]),
        (19, 20, ["There are only 19 rows to train on: expect little"]),
        (20, 20, ["There are only 20 rows to train on: the result depends"]),
        (49, 19, ["There are only 49 rows", "There are only 19 rows for validation"]),
        (50, 20, []),
        (50, 0, ["There are no validation rows"]),
    ],
)
def test_rows(trained: int, validation: int, expected: list[str]) -> None:
    found = row_cautions(trained, validation)
    assert len(found) == len(expected)
    for text, start in zip(found, expected, strict=True):
        assert text.startswith(start)


@given(st.floats(0, 20), st.floats(0, 20), st.floats(0, 5))
def test_a_larger_gap_is_never_less_of_a_reason(trained: float, gap: float, more: float) -> None:
    small, large = (gap_caution([trained], trained + found) for found in (gap, gap + more))
    assert large is not None or small is None


def test_a_model_that_is_better_on_validation_rows_is_in_order() -> None:
    assert gap_caution([3.0, 2.0], 0.1) is None
