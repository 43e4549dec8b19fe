"""What a session holds after a step does not grow with the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mixed_models import make_mixed
from models import make_model
from support.held import held_bytes

from conformance.cases import CASES, Case
from conformance.sessions import Bench, rows, step
from edgetune.model import LocalModel
from edgetune.settings.spec import Checkpointing

STEPS, SETTLED = 30, 6
A_STEP = 500
"""Bytes: less than an array of a row's activations, more than numbers that come and go."""

GROUPS_OF_64 = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.fixture(scope="module")
def convolving(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """One attention between two short convolutions."""
    return LocalModel.open(make_model(tmp_path_factory.mktemp("lfm2"), "lfm2", **GROUPS_OF_64))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """A narrower block behind a wide one."""
    folder: Path = tmp_path_factory.mktemp("mixed")
    return make_mixed(folder)[0]


def of_names(*names: str) -> Any:
    """Run a test with cases by their names."""
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case.name) for case in CASES if case.name in names]
    )


@of_names("lora", "vera", "parallel", "prefix", "llama-adapter", "mam")
def test_nothing_is_left_of_a_step_on_quantized_blocks_that_differ(
    bench: Bench, convolving: LocalModel, case: Case
) -> None:
    form = bench.ways.formats["8-bit"]
    assert _grown(bench, convolving, case, quantization=form) < A_STEP


@of_names("vera", "parallel")
def test_nothing_is_left_of_a_step_on_blocks_of_two_widths(
    bench: Bench, mixed: LocalModel, case: Case
) -> None:
    assert _grown(bench, mixed, case) < A_STEP


def _grown(bench: Bench, model: LocalModel, case: Case, **fixed: Any) -> float:
    """Return the bytes that are held more after each step; the last block is not checkpointed."""
    checkpointing = Checkpointing(layers=model.shape.layers - 1)
    batch, seen = rows(), []
    with held_bytes(bench.name) as held:
        session = bench.open(case, model, checkpointing=checkpointing, **fixed)
        for _ in range(STEPS):
            step(session, batch, batch)
            seen.append(held())
    return (seen[-1] - min(seen[:SETTLED])) / (STEPS - SETTLED)
