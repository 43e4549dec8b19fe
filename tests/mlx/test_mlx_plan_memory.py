"""What a plan says that training takes on MLX, against what MLX's allocator held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from plan_memory import (
    CASES,
    DISK,
    MODELS,
    NARROW,
    Case,
    Measured,
    drawn,
    make,
    measure,
    measure_lasting,
    measure_opening,
)

from edgetune.errors import EdgetuneError

MOST, USUAL = 0.05, 0.025
"""Shares by which plans may be over: at most, and usually."""
TINY = 256_000
"""Bytes that a plan may be over, where that is more than :data:`MOST` of a small model."""
DRAWN = 60
FORMATS = ("none", "q8", "q4", "mxfp4", "nvfp4")
SMALL = 24576
"""Bytes of scales and positions on their way."""


SOME = [
    pytest.param(case, id=str(case), marks=[pytest.mark.long] if place % 2 else [])
    for place, case in enumerate(CASES)
]
"""Every second setting; the others in the long form."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make(name, folder) for name in MODELS}


@pytest.mark.parametrize("case", SOME)
def test_the_plan_is_what_training_takes(case: Case, folders: dict[str, Path]) -> None:
    _is_near(case, measure(case, folders[case.model]))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_plans_of_drawn_settings_are_what_training_takes(folders: dict[str, Path]) -> None:
    found = list[Measured]()
    for case in drawn(seed=0):
        try:
            found.append(measure(case, folders[case.model]))
        except EdgetuneError:  # a method that has no place in a family, groups that do not divide
            continue
        _is_near(case, found[-1])
        if len(found) == DRAWN:
            break
    assert median(each.over for each in found) <= USUAL


@pytest.mark.parametrize(
    ("model", "quantization", "fixed"),
    [
        *(("narrow", quantization, NARROW) for quantization in FORMATS),
        ("gpt2", "none", {}),  # whose matrices lie the other way round
        ("gpt2", "q4", {}),
        ("mixed", "none", {}),
        ("mixed", "nvfp4", {}),
        ("gpt2", "mxfp4", DISK),
    ],
)
def test_the_plan_is_what_opening_takes(
    model: str, quantization: str, fixed: Mapping[str, Any], folders: dict[str, Path]
) -> None:
    own = {**fixed, "quantization": quantization}
    case = Case(model=model, context=16, checkpointed=True, fixed=own)
    found = measure_opening(case, folders[model])
    assert found.planned - found.peak >= -SMALL
    assert found.planned - found.peak <= max(TINY, MOST * found.peak)


@pytest.mark.parametrize(
    ("model", "quantization"), [("latent", "nvfp4"), ("mixed", "mxfp4"), ("tied", "q8")]
)
def test_weights_lie_in_places_of_their_own_size(
    model: str, quantization: str, folders: dict[str, Path]
) -> None:
    """Many small scales would stay in larger buffers, which MLX keeps for what comes next."""
    case = Case(model=model, context=16, fixed={"quantization": quantization})
    found = measure_lasting(case, folders[model])
    assert found.peak == pytest.approx(found.planned, abs=4096)


@pytest.mark.parametrize(
    ("model", "length", "fixed"),
    [
        ("untied", 20, {}),
        ("untied", 200, {}),
        ("untied", 200, NARROW | {"quantization": "q4"}),
        ("convolving", 200, {}),
        ("untied", 60, DISK),
    ],
)
def test_the_text_that_a_prefix_starts_from_is_read_within_the_plan(
    model: str, length: int, fixed: Mapping[str, Any], folders: dict[str, Path]
) -> None:
    """Prefixes as long as a row hardly ever is, too."""
    own = {**fixed, "method": "prefix", "prefix_length": length}
    case = Case(model=model, context=16, checkpointed=True, fixed=own)
    assert 0 <= measure_opening(case, folders[model]).over < 0.25


def _is_near(case: Case, found: Measured) -> None:
    assert found.over >= 0, (case, found)
    # what MLX queues ahead may be there or not
    assert found.least - found.peak <= max(TINY, MOST * found.peak), (case, found)
