"""The log of a run on a pipe: a few lines about its steps, however many it has."""

from __future__ import annotations

import pytest

from edgetune.cli.progress import MOST_LINES, is_told


@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 24, 39, 60, 1000, 12_345])
def test_a_log_has_few_lines_about_steps(first: int, count: int) -> None:
    last = first + count
    told = [step for step in range(first + 1, last + 1) if is_told(step, first, last)]
    assert told[0] == first + 1
    assert told[-1] == last
    assert min(count, MOST_LINES // 2) <= len(told) <= MOST_LINES
