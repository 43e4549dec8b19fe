"""The main job in real processes on the built-in model, interrupted in every way."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rows import Cli, call, chat, finish, start, write_rows
from tiny_runs import CHECKPOINT, LEARN, STEPS, learned, lines, resume, wait_for, wait_for_steps

from edgetune.events import Event
from edgetune.workflows.training import Run


def test_a_run_folder_is_complete(run: Path) -> None:
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {"plan.yaml", "receipt.json", "metrics.jsonl", "journal.jsonl", "memory.json", "report.html",
                     "checkpoints", "adapter", "verdict.json", "samples.json"}  # fmt: skip
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert checkpoints[0] == "best"
    assert checkpoints[-1] == f"step-{STEPS:06}"
    for name in checkpoints[1:]:
        assert sorted(p.name for p in (run / "checkpoints" / name).iterdir()) == CHECKPOINT
    assert sorted(path.name for path in (run / "adapter").iterdir()) == CHECKPOINT[:2]
    assert json.loads((run / "receipt.json").read_text())["rows_read"] == 40
    memory = json.loads((run / "memory.json").read_text())
    assert memory.keys() == {
        "planned_bytes",
        "peak_bytes",
        "budget_bytes",
        "exceeded",
        "phases",
        "pilot",
    }
    assert 0 < memory["pilot"]["peak_bytes"] <= memory["peak_bytes"]
    assert memory["exceeded"] is (memory["peak_bytes"] > memory["planned_bytes"])
    best = (run / "checkpoints" / "best").resolve() / "adapter_model.safetensors"
    assert best.read_bytes() == (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_log_has_every_step_and_evaluation(run: Path) -> None:
    found = [(line["event"], line["step"]) for line in lines(run / "metrics.jsonl")]
    expected = [("eval", 0)]
    for step in range(1, STEPS + 1):
        expected += [("step", step)] + [("eval", step)] * (step % 2 == 0)
    assert found == expected
    journal = lines(run / "journal.jsonl")
    assert {"planned", "pilot", "best checkpoint", "memory measured", "adapter written"} == {
        line["what"] for line in journal
    } - {"over the plan", "rates corrected"}  # as the machine is busy
    assert all(line["because"] for line in journal)


def test_it_learns(run: Path) -> None:
    losses = [line["loss"] for line in lines(run / "metrics.jsonl") if line["event"] == "eval"]
    assert losses[-1] < 0.8 * losses[0]


def test_one_seed_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", lines(run.parent / "rows.jsonl"))
    called = call(*LEARN, "--output", "again", cwd=tmp_path)
    assert called.code == 0, called.err
    assert learned(tmp_path / "again") == learned(run)


def test_another_seed_gives_others(run: Path, cli: Cli, tmp_path: Path) -> None:
    other = cli(*LEARN[:-1], "6", "--output", tmp_path / "other", "--quiet")
    assert (other.code, other.err) == (0, "")
    assert learned(tmp_path / "other")["metrics"] != learned(run)["metrics"]


def test_interrupted_and_resumed_is_uninterrupted(run: Path, folder: Path, cli: Cli) -> None:
    process = start(*LEARN, "--output", "stopped", cwd=folder)
    wait_for_steps(folder / "stopped", 2)
    second = cli("train", "--resume", "--output", "stopped")
    assert second.code == 2
    assert "Another process is at work in stopped" in second.err
    process.send_signal(signal.SIGINT)
    stopped = finish(process)
    assert stopped.code == 6, stopped.err
    assert stopped.out == ""
    last = stopped.err.splitlines()[-1]
    step = re.fullmatch(rf"Stopped after step (\d) of {STEPS}\. Continue with: (.*)", last)
    assert step is not None, stopped.err
    assert step[2] == "edgetune train --resume --output stopped"
    assert (folder / "stopped" / "checkpoints" / f"step-{int(step[1]):06}").is_dir()
    refused = cli("generate", "stopped", "-p", "hello")
    assert refused.code == 2
    assert step[2] in refused.err

    process = start(*step[2].split()[1:], cwd=folder)
    wait_for_steps(folder / "stopped", int(step[1]) + 1)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert finish(process).code in {6, 130}
    resume(folder / "stopped")
    assert learned(folder / "stopped") == learned(run)
    what = [line["what"] for line in lines(folder / "stopped" / "journal.jsonl")]
    assert what.count("resumed") == 2
    assert "ended early" in what


def test_a_run_goes_on_with_the_options_that_it_began_with(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--no-verdict", "--samples", "0", "--strict")
    process = start(*LEARN, *options, "--output", "bare", cwd=folder)
    wait_for_steps(folder / "bare", 2)
    process.send_signal(signal.SIGINT)
    stopped = finish(process)
    assert stopped.code == 6, stopped.err
    seen = []

    def events(self: Run, *_: object, strict: bool, **more: Any) -> Iterator[Event]:
        seen.append(strict)
        return train(self, *_, strict=strict, **more)

    train = Run.events
    monkeypatch.setattr(Run, "events", events)
    printed = stopped.err.splitlines()[-1].partition("Continue with: edgetune ")[2].split()
    assert cli(*printed).code == 0
    assert seen == [True]
    ends = folder / "bare" / "verdict.json", folder / "bare" / "samples.json"
    assert not any(file.exists() for file in ends)

    assert cli(*printed, "--verdict", "--samples", "1", "--no-strict").code == 0
    assert seen == [True, False]
    assert all(file.exists() for file in ends)
    assert len(json.loads(ends[1].read_text())["samples"]) == 1
    assert cli(*printed).code == 0
    assert seen == [True, False, False], "what is said last is kept"


def test_killed_moved_and_resumed_is_uninterrupted(run: Path, tmp_path: Path, cli: Cli) -> None:
    data = write_rows(tmp_path / "rows.jsonl", lines(run.parent / "rows.jsonl"))
    process = start(*LEARN, "--output", "killed", cwd=tmp_path)
    wait_for_steps(tmp_path / "killed", 4)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    moved = data.rename(tmp_path / "moved.jsonl")
    killed = tmp_path / "killed"
    lost = cli("train", "--resume", "--output", killed)
    assert lost.code == 2
    assert f"The rows of the run are not at {data} any more" in lost.err
    rows = lines(moved)
    changed = write_rows(tmp_path / "changed.jsonl", [*rows[1:], chat("other", "row")])
    other = cli("train", "--resume", "--output", killed, "--data", changed)
    assert other.code == 2
    assert "The data changed" in other.err
    small = cli("train", "--resume", "--output", killed, "--data", moved, "--memory", "50MB")
    assert small.code == 3
    assert "This run needs" in small.err
    assert "--memory allows 50.0 MB" in small.err
    plan = (killed / "plan.yaml").read_text()
    (killed / "plan.yaml").write_text(re.sub("limit_bytes: null", "limit_bytes: 200000000", plan))
    beyond = call("train", "--resume", "--output", "killed", "--data", moved, cwd=tmp_path)
    assert beyond.code == 7
    assert "the limit is 200 MB" in beyond.err
    resume(killed, "--data", "moved.jsonl", "--memory", "3GB")
    assert learned(killed) == learned(run)


@pytest.mark.skipif(os.name != "posix", reason="a command has no parent here")
@pytest.mark.parametrize(("rows", "name"), [(1, "SIGKILL"), (4, "SIGSEGV")])
def test_a_worker_that_dies_has_a_successor(folder: Path, rows: int, name: str) -> None:
    command = (*LEARN[:7], "--compute-dtype", "float32", "--micro-batch", str(rows), "--steps",
               "8", "--save-every", "1", "--keep", "9", "--validation", "0")  # fmt: skip
    whole, killed = folder / f"whole-{rows}", folder / f"killed-{rows}"
    process = start(*command, "--output", killed.name, cwd=folder)
    wait_for(killed / "checkpoints" / "step-000001")
    psutil.Process(process.pid).children()[0].send_signal(getattr(signal, name))
    ended = finish(process)
    assert ended.code == 0, ended.err
    (note,) = [x for x in lines(killed / "journal.jsonl") if x["what"].startswith("smaller")]
    assert note["rows"] == max(1, rows // 2)
    assert f"({name})" in note["because"]
    assert call(*command, "--output", whole.name, cwd=folder).code == 0
    if rows == 1:
        assert learned(killed) == learned(whole)
    for one, other in zip(
        lines(whole / "metrics.jsonl"), lines(killed / "metrics.jsonl"), strict=True
    ):
        assert (other["step"], other["loss"]) == (one["step"], pytest.approx(one["loss"], abs=1e-5))


def test_a_finished_run_stays_as_it_is(run: Path, cli: Cli) -> None:
    before = learned(run)
    called = cli("train", "--resume", "--output", run)
    assert called.code == 0
    assert f"Resuming after step {STEPS} of {STEPS}" in called.err
    assert learned(run) == before


def test_json_and_verbosity_of_training(cli: Cli, tmp_path: Path) -> None:
    short = [*LEARN[:7], "--steps", "2"]
    told = cli(*short, "--output", tmp_path / "told", "--json")
    result = json.loads(told.out)
    assert result.keys() == {"run", "kept", "cautions", "adapter", "report", "steps", "loss", "peak_bytes", "planned_bytes",
                             "base_validation_loss", "validation_loss", "rewinds",
                             "pilot", "verdict"}  # fmt: skip
    assert "pilot: measured" in told.err
    assert result["steps"] == 2
    assert result["validation_loss"] < result["base_validation_loss"]
    assert f"before training: validation loss {result['base_validation_loss']:.4f}" in told.err
    assert re.search(r"peak [\d.]+/[\d.]+ [MG]B", told.err)
    assert Path(result["adapter"]).is_dir()
    assert "step 2/2" in told.err
    assert "checkpoint saved" not in told.err
    more = cli(*short, "--output", tmp_path / "more", "--verbose")
    assert "step 2: checkpoint saved" in more.err
    quiet = cli(*short, "--output", tmp_path / "quiet", "--json", "--quiet")
    assert quiet.err == ""
    assert json.loads(quiet.out)["loss"] == result["loss"]


def test_a_run_that_runs_away_ends_with_a_kind_of_its_own(cli: Cli, tmp_path: Path) -> None:
    short = [*LEARN[:7], "--steps", "6", "--eval-every", "6", "--learning-rate", "1e4"]
    ended = cli(*short, "--output", tmp_path / "run", "--json")
    error = json.loads(ended.out)["error"]
    assert (ended.code, error["exit_code"], error["kind"]) == (8, 8, "diverged")
    assert ended.err.count("with half the learning rate") == 3
    assert not (tmp_path / "run" / "adapter").exists()
    again = cli("train", "--resume", "--output", tmp_path / "run", "--strict")
    assert again.code == 8
    assert "with half the learning rate" not in again.err
