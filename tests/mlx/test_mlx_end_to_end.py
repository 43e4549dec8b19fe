"""The commands on MLX: trained, stopped and resumed as if nothing had been, used, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import Cli, write_rows

from edgetune.errors import StoppedError
from edgetune.events import Stepped
from edgetune.files import sha256_file
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.resuming import resume_run
from edgetune.workflows.training import start_run

CHOICE = {"micro_batch": 1, "accumulation": 1, "rank": 2, "targets": ("q_proj",), "layers": 1,
          "dropout": 0.2}  # fmt: skip
TRAINING = {"steps": 2, "eval_every": 2, "save_every": 1, "validation": 0.05}


def test_stopped_and_resumed_equals_uninterrupted_in_every_file(tmp_path: Path) -> None:
    request = PlanRequest(model="tiny", data=write_rows(tmp_path / "rows.jsonl"), device="mlx",
                choice=CHOICE, training=TRAINING)  # fmt: skip
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run = start_run(plan_for(request), whole)
    losses = [event.loss for event in run.events() if isinstance(event, Stepped)]
    run.close()
    run = start_run(plan_for(request), halves)
    with pytest.raises(StoppedError):
        list(run.events(stop=lambda: True))
    run.close()

    run = resume_run(halves)
    list(run.events())
    run.close()

    metrics = (halves / "metrics.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in metrics]
    assert [event["loss"] for event in events if event["event"] == "step"] == losses
    for file in sorted((whole / "checkpoints").glob("step-*/*.safetensors")):
        assert sha256_file(halves / file.relative_to(whole)) == sha256_file(file), file


def test_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = Cli(capsys)
    write_rows(tmp_path / "rows.jsonl")

    trained = cli(
        "train", "--device", "mlx", "--model", "tiny", "--data", "rows.jsonl", "--steps", "1",
        "--micro-batch", "2", "--accumulation", "1", "--method", "bitfit", "--output", "run",
    )  # fmt: skip
    refused = cli(
        "plan", "--device", "mlx", "--model", "tiny", "--placement", "host", "--context", "64"
    )

    assert trained.code == 0, trained.err
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert refused.code == 2
    assert "Supported: resident, disk" in refused.err


def test_a_run_is_exported_quantized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = Cli(capsys)
    write_rows(tmp_path / "rows.jsonl")
    cli(
        "train", "--device", "mlx", "--model", "tiny", "--data", "rows.jsonl", "--steps", "1",
        "--micro-batch", "1", "--accumulation", "1", "--rank", "2", "--targets", "q_proj",
        "--output", "run",
    )  # fmt: skip

    exported = cli("export", "run", "--to", "mlx", "--quantize", "q4", "--output", "out")
    refused = cli("export", "run", "--to", "hf", "--quantize", "q4", "--output", "other")

    assert exported.code == 0, exported.err
    assert "Checked on" in exported.out
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert refused.code == 2
    assert "--to mlx" in refused.err
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "run", "out"}
