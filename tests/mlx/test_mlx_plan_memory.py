"""What a plan says that training takes on MLX, against what MLX's allocator held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from plan_memory import CASES, DISK, MODELS, NARROW, Case, make, measure, measure_opening

MOST = 0.05
TINY = 256_000
"""Bytes that a plan may be over, where that is more than :data:`MOST` of a small model."""
FORMATS = ("none", "q8", "q4", "mxfp4", "nvfp4")
SMALL = 24576
"""Bytes of scales and positions on their way."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make(name, folder) for name in MODELS}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_is_what_training_takes(case: Case, folders: dict[str, Path]) -> None:
    found = measure(case, folders[case.model])
    assert found.over >= 0
    # what MLX queues ahead may be there or not
    assert found.least - found.peak <= max(TINY, MOST * found.peak)


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
    assert found.over <= MOST
