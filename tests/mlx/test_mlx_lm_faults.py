"""Known faults of mlx-lm's trainer (0.32), each shown not to be one of ours.

Two more have their tests elsewhere: averages of means in accumulation
(``test_mlx_exact.py``), and resuming with the weights alone (there too).
"""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from adapters import random_tensors
from mlx_sessions import batch_of, one_document, open_session, plan_of
from models import make_model

from edgetune.adapters import LoadedAdapter
from edgetune.data.batch import MicroBatch
from edgetune.events import Stepped
from edgetune.exporters import ExportRequest, export
from edgetune.model import LocalModel
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.training import start_run

EXAMPLES = Path("examples/home_commands.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "llama")


def test_what_stands_in_the_padding_is_not_trained(folder: Path) -> None:
    """There, one padding token a row is."""
    batch = one_document(3, length=20)
    tokens = batch.tokens.copy()
    tokens[:, 20:] = 42
    other = MicroBatch(tokens=tokens, targets=batch.targets, documents=batch.documents)
    sessions = open_session(folder), open_session(folder)

    for session, rows in zip(sessions, (batch, other), strict=True):
        session.step((rows,), loss_tokens=batch.loss_tokens, learning_rate=1e-2)

    one, two = (session.adapter_tensors() for session in sessions)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_every_row_is_trained_in_an_epoch(tmp_path: Path) -> None:
    """There, rows behind the last whole batch never are; and rows of one length are not together."""
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(EXAMPLES.read_text("utf-8").splitlines()[:7]), "utf-8")
    request = PlanRequest(
        model="tiny", data=data, device="mlx",
        choice={"micro_batch": 2, "accumulation": 1, "targets": ("q_proj",), "layers": 1},
        training={"epochs": 1.0, "validation": 0.0},
    )  # fmt: skip
    run = start_run(plan_for(request), tmp_path / "run")
    steps = [event for event in run.events() if isinstance(event, Stepped)]
    run.close()

    receipt = json.loads((tmp_path / "run" / "receipt.json").read_text("utf-8"))
    assert receipt["rows_trained"] == 7
    assert sum(step.loss_tokens for step in steps) == receipt["loss_tokens"]
    assert sum(step.tokens for step in steps) == receipt["tokens"]


def test_the_cache_stays_within_its_limit(folder: Path) -> None:
    """There, the threshold is read and not used."""
    session = open_session(folder)
    limit = mx.set_cache_limit(100_000)
    for lengths in (((30,),) * 4, ((9,),), ((17, 8), (20,))):
        batch = batch_of(lengths)
        session.step((batch,), loss_tokens=batch.loss_tokens, learning_rate=1e-2)
        mx.synchronize()

        assert session.memory().cache_bytes <= 100_000
    mx.set_cache_limit(limit)
    session.close()


def test_a_small_update_survives_merging(folder: Path, tmp_path: Path) -> None:
    """There, fusing into a quantized base rounds it away."""
    model = LocalModel.open(folder)
    method = plan_of(model, "mlx").choice.method
    tensors = {name: x * 0.01 for name, x in random_tensors(method, model.shape).items()}
    adapter = LoadedAdapter(method=method, tensors=tensors, base=None)
    export("mlx", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))
    session, merged = open_session(folder), open_session(tmp_path / "out")
    session.restore(tensors)
    row = list(range(5, 25))

    effect = np.abs(session.logits(row) - session.logits(row, adapter=None)).max()
    error = np.abs(session.logits(row) - merged.logits(row, adapter=None)).max()

    assert 0 < effect < 0.05
    assert error < 0.02 * effect
