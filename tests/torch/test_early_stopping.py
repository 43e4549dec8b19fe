"""A run over few rows that ends when its validation loss falls no more, interrupted and not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rows import Cli, chat, write_rows

from edgetune.errors import StoppedError
from edgetune.events import EndedEarly, Event, SaveDue, Stepped
from edgetune.files import sha256_file
from edgetune.version import __version__
from edgetune.workflows.after import After
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.resuming import resume_run
from edgetune.workflows.training import start_run

STEPS, PATIENCE = 40, 2
PLAIN = After(verdict=False, samples=0)


def request(data: Path) -> PlanRequest:
    """Rows whose validation rows contradict what is trained: their loss rises soon."""
    rows = [chat(f"Say {n}", "one two three") for n in range(12)]
    held = [chat(f"Say {n} now", "nine eight") for n in range(3)]
    write_rows(data / "rows.jsonl", rows)
    write_rows(data / "held.jsonl", held)
    training = {
        "steps": STEPS, "eval_every": 2, "save_every": 3, "patience": PATIENCE,
        "learning_rate": 0.02, "validation_data": str(data / "held.jsonl"), "warmup": 0.0,
    }  # fmt: skip
    choice = {"micro_batch": 2, "accumulation": 1, "rank": 2, "dropout": 0.1}
    return PlanRequest(
        model="tiny", data=data / "rows.jsonl", device="cpu", choice=choice, training=training
    )


def steps_of(folder: Path) -> list[tuple[str, int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [(line["event"], line["step"], line["loss"]) for line in lines]


def test_it_ends_where_it_would_have_whenever_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_for(request(tmp_path))
    whole = start_run(planned, tmp_path / "whole")
    events: list[Event] = list(whole.events(pilot=False, after=PLAIN))
    whole.close()
    (ended,) = [event for event in events if isinstance(event, EndedEarly)]
    assert ended.step < STEPS
    assert ended.evaluations == PATIENCE
    kept = whole.folder.kept()
    assert kept is not None
    assert kept.loss == ended.lowest < (kept.base_loss or 0)
    assert kept.step == ended.step - PATIENCE * 2

    halves = start_run(planned, tmp_path / "halves")
    answers = iter([False] * (ended.step - 2) + [True])  # one evaluation was waited for
    with pytest.raises(StoppedError):
        list(halves.events(stop=lambda: next(answers), pilot=False, after=PLAIN))
    halves.close()
    monkeypatch.setattr("edgetune.runs.facts.__version__", "9.9")
    resumed = resume_run(tmp_path / "halves")
    (changed,) = resumed.notices
    assert f"(edgetune {__version__} -> 9.9)" in changed
    assert resumed.start.patience.waited == PATIENCE - 1
    rest = list(resumed.events(pilot=False, after=PLAIN))
    resumed.close()
    assert [event for event in rest if isinstance(event, EndedEarly)] == [ended]
    assert steps_of(tmp_path / "halves") == steps_of(tmp_path / "whole")
    for file in sorted((tmp_path / "whole" / "adapter").iterdir()):
        assert sha256_file(tmp_path / "halves" / "adapter" / file.name) == sha256_file(file)

    finished = resume_run(tmp_path / "halves")
    assert not [
        event for event in finished.events(after=PLAIN) if isinstance(event, (Stepped, SaveDue))
    ]
    finished.close()


def test_it_is_said_and_can_be_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = Cli(capsys)
    request(tmp_path)
    train = [
        "train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--rank", "2",
        "--validation-data", "held.jsonl", "--learning-rate", "0.02", "--micro-batch", "4",
        "--warmup", "0", "--no-verdict", "--samples", "0",
    ]  # fmt: skip
    called = cli(*train, "--output", "early", "--json")
    assert called.code == 0, called.err
    assert "ends early after 3 evaluations without a lower validation loss" in called.err
    assert re.search(r"step \d+: no lower validation loss in 3 evaluations", called.err)
    summary = json.loads(called.out)
    assert summary["kept"]["step"] < summary["steps"]
    assert summary["kept"]["loss"] < summary["kept"]["base_loss"]
    cautions = " ".join(summary["cautions"])
    assert "only 12 rows to train on" in cautions
    assert "only 3 rows for validation" in cautions

    called = cli(*train, "--patience", "0", "--output", "all", "--json", "-q")
    assert called.code == 0, called.err
    assert json.loads(called.out)["steps"] > summary["steps"]
    refused = cli(*train[:7], "--validation", "0", "--patience", "2", "--output", "none")
    assert refused.code == 2
    assert "--patience 2 needs validation rows" in refused.err
