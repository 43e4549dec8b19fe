"""The run folder and its checkpoints, over a numpy session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from recorded import Recorded, facts_of, make_plan
from safetensors.numpy import load_file
from softmax import TRAINED

from edgetune import __version__
from edgetune.errors import DiskError, OutOfMemoryError, UsageError
from edgetune.events import Evaluated, Recovered, RunState, SaveDue, Stepped
from edgetune.owned import lock
from edgetune.planning import Plan
from edgetune.runs import AS_USUAL, RunFolder, RunOptions, best, latest, load_checkpoint
from edgetune.runs.facts import RANDOM, SavedState
from edgetune.runs.lines import append_line, keep_lines, read_lines
from edgetune.runs.lock import LOCK, holder
from edgetune.runs.retention import checkpoints, mark_best, prune
from edgetune.runs.rewind import rewind

HERE = Path(__file__).parent
FILES = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(plan: Plan, tmp_path: Path) -> Recorded:
    """A run that was trained to its end."""
    return Recorded.start(plan, tmp_path / "run").train()


def saved(**facts: Any) -> SavedState:
    given = {"plan": "", "data": "rows", "model": "model", "versions": {}, "files": {}, **facts}
    return SavedState(progress=RunState(), **given)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_folder_is_complete(run: Recorded) -> None:
    folder = run.folder.path
    assert names(folder) == ["checkpoints", "journal.jsonl", "metrics.jsonl", "plan.yaml",
                             "receipt.json"]  # fmt: skip
    assert names(run.folder.checkpoints) == ["best", "step-000002", "step-000004", "step-000006"]
    assert names(run.folder.checkpoints / "step-000004") == FILES


def test_a_state_says_what_it_is_the_state_of(run: Recorded) -> None:
    state = json.loads((run.folder.checkpoints / "step-000006" / "state.json").read_text())
    facts, evaluations, steps = facts_of(run.plan), _lines(run, "eval"), _lines(run, "step")
    best_line = min(evaluations, key=lambda line: line["loss"])
    assert state["version"] == 2
    assert state["progress"] == {
        "step": 6,
        "base_loss": evaluations[0]["loss"],
        "best_step": best_line["step"],
        "best_loss": best_line["loss"],
        "rows": 0,
        "shares": [],
        "unevaluated": False,
        "guard": {
            "first": steps[0]["loss"],
            "losses": [line["loss"] for line in steps],
            "suspects": [],
            "saved": 6,
            "good": max(best_line["step"], 4),
            "earlier": 4 if best_line["step"] == 6 else 2,
            "rewinds": 0,
        },
        "patience": {"lowest": best_line["loss"], "waited": (6 - best_line["step"]) // 2},
    }
    epoch = TRAINED.steps_per_epoch()
    assert state["position"] == {
        "epoch": 6 // epoch,
        "step": 6 % epoch,
        "steps_per_epoch": epoch,
    }
    assert state["random"] == {"seed": run.plan.training.seed, "scheme": RANDOM}
    assert state["schedule"] == {
        "steps": 6,
        "eval_every": 2,
        "save_every": 2,
        "warmup": 1,
        "learning_rate": run.plan.training.learning_rate,
        "patience": 0,
    }
    assert (state["plan"], state["data"], state["model"]) == (facts.plan, "rows", "model")
    assert state["versions"]["edgetune"] == __version__
    assert {"python", "numpy", "transformers"} < state["versions"].keys()
    assert sorted(state["files"]) == FILES[:-1]


@pytest.mark.parametrize(
    ("knob", "same"),
    [
        ({"save_every": 1}, True),
        ({"keep": 1}, True),
        ({"seed": 1}, False),
        ({"steps": 7}, False),
        ({"learning_rate": 0.5}, False),
        ({"eval_every": 3}, False),
    ],
)
def test_a_plan_is_another_when_its_result_is(
    knob: dict[str, float], same: bool, plan: Plan, tmp_path: Path
) -> None:
    changed = facts_of(make_plan(tmp_path, **knob)).changed(saved(plan=facts_of(plan).plan))
    assert changed == ([] if same else ["plan"])


def test_changed_facts_are_named(plan: Plan) -> None:
    facts = facts_of(plan)
    old = saved(plan=facts.plan, data="others", model="another")
    assert facts.changed(old) == ["data", "model"]
    versions = {**facts.versions, "numpy": "1.0", "gone": "2"}
    assert facts.newer(saved(versions=versions)) == {
        "numpy": f"1.0 -> {facts.versions['numpy']}",
        "gone": "2 -> None",
    }


def test_kernels_that_come_or_go_are_named(plan: Plan) -> None:
    without = facts_of(plan)
    with_own = without.computed_by("Triton 3.7.1")

    assert without.computed_by("") == without
    assert with_own.newer(saved(versions=without.versions)) == {"kernels": "None -> Triton 3.7.1"}
    assert without.newer(saved(versions=with_own.versions)) == {"kernels": "Triton 3.7.1 -> None"}


def test_a_checkpoint_holds_every_bit(run: Recorded) -> None:
    newest = latest(run.folder.checkpoints)
    checkpoint = load_checkpoint(newest, run.plan)
    for found, expected in (
        (checkpoint.adapter, run.session.adapter_tensors()),
        (checkpoint.optimizer, run.session.optimizer_tensors()),
    ):
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in found)
    assert checkpoint.state.progress.step == 6


def test_files_are_as_readable_as_any_other(run: Recorded, tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    expected = (tmp_path / "any").stat().st_mode
    for file in (run.folder.checkpoints / "step-000006").iterdir():
        assert file.stat().st_mode == expected, file


@pytest.mark.skipif(not hasattr(os, "fork"), reason="crashes are made in forked processes")
def test_a_crash_at_any_write_loses_nothing(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, HERE / "crash_at_each_write.py", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]),
             "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    deaths = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(deaths) > 20
    assert deaths[-1]["died"] is None
    for death in deaths:
        assert death["wrong"] == []
        assert {death["latest"], death["best"]} <= set(death["all"])
        assert death["end"] == deaths[-1]["end"]
    steps = [death["latest"] for death in deaths]
    assert {steps[0], steps[-1]} == {"step-000002", "step-000003"}
    assert all(before <= after for before, after in pairwise(steps))


def test_half_written_folders_do_not_count_and_are_swept(run: Recorded) -> None:
    folder = run.folder.checkpoints
    (folder / ".step-000008.partial").mkdir()
    (folder / ".step-000008.partial" / "state.json").write_text("{}")
    (folder / ".best.partial").symlink_to("step-000008")
    assert latest(folder).name == "step-000006"
    rewind(run.folder, load_checkpoint(latest(folder), run.plan))
    assert names(folder) == ["best", "step-000002", "step-000004", "step-000006"]


def test_the_newest_is_the_highest_number(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000", "step-000010", "step-1", "notes"):
        (tmp_path / name).mkdir()
    found = [path.name for path in checkpoints(tmp_path)]
    assert found == ["step-000010", "step-999999", "step-1000000"]
    assert latest(tmp_path).name == "step-1000000"


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert best(tmp_path) is None


@pytest.mark.parametrize("linked", [True, False])
def test_the_best_is_marked_by_a_link_or_a_file(tmp_path: Path, linked: bool) -> None:
    for name in ("step-000001", "step-000002"):
        (tmp_path / name).mkdir()
        mark_best(tmp_path, tmp_path / name)
    if not linked:
        (tmp_path / "best").unlink()
        (tmp_path / "best").write_text("step-000002")
    assert best(tmp_path) == tmp_path / "step-000002"
    (tmp_path / "step-000002").rmdir()
    assert best(tmp_path) is None


@pytest.mark.parametrize(
    ("keep", "marked", "left"),
    [(2, 1, [1, 4, 5]), (2, 4, [4, 5]), (1, 5, [5]), (9, 1, [1, 2, 3, 4, 5]), (0, 3, [1, 2, 3, 4, 5])],
)  # fmt: skip
def test_pruning_keeps_the_newest_and_the_best(
    tmp_path: Path, keep: int, marked: int, left: list[int]
) -> None:
    for step in range(1, 6):
        (tmp_path / f"step-{step:06}").mkdir()
    mark_best(tmp_path, tmp_path / f"step-{marked:06}")
    prune(tmp_path, keep)
    assert names(tmp_path) == ["best", *(f"step-{step:06}" for step in left)]


def test_a_run_keeps_its_best_checkpoint(plan: Plan, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "model", steps=30, eval_every=3, keep=1, learning_rate=3.0)
    run = Recorded.start(plan, tmp_path / "run").train()
    lowest = min(_lines(run, "eval"), key=lambda line: line["loss"])
    assert best(run.folder.checkpoints).name == f"step-{lowest['step']:06}"
    assert {path.name for path in checkpoints(run.folder.checkpoints)} == {
        f"step-{lowest['step']:06}",
        "step-000030",
    }


def test_metrics_are_the_events(run: Recorded) -> None:
    lines = read_lines(run.folder.metrics)
    assert [(line["event"], line["step"]) for line in lines] == [
        ("eval", 0), ("step", 1), ("step", 2), ("eval", 2), ("step", 3), ("step", 4), ("eval", 4),
        ("step", 5), ("step", 6), ("eval", 6),
    ]  # fmt: skip
    assert {"loss", "tokens", "loss_tokens", "seconds", "learning_rate", "grad_norm",
            "peak_bytes"} < _lines(run, "step")[0].keys()  # fmt: skip
    assert {"loss", "perplexity", "rows"} < _lines(run, "eval")[0].keys()
    assert run.folder.peak_bytes() == run.session.memory().peak_bytes


def test_the_journal_gives_reasons(run: Recorded) -> None:
    run.recorder.handle(Recovered(step=6, rows=2, because="8 rows, 3 fit"))
    lines = read_lines(run.folder.journal)
    assert all({"time", "what", "because"} <= line.keys() for line in lines)
    assert lines[0]["what"] == "best checkpoint"
    last = {k: v for k, v in lines[-1].items() if k != "time"}
    assert last == {
        "what": "smaller micro-batches", "because": "8 rows, 3 fit", "step": 6, "rows": 2,
    }  # fmt: skip


def test_rewinding_drops_what_will_be_done_again(run: Recorded) -> None:
    with run.folder.metrics.open("a") as file:
        file.write('{"event": "step", "st')
    with run.folder.journal.open("a") as file:
        file.write('{"time": 1')
    checkpoint = load_checkpoint(run.folder.checkpoints / "step-000004", run.plan)
    assert rewind(run.folder, checkpoint) == 4
    assert [line["step"] for line in read_lines(run.folder.metrics)] == [0, 1, 2, 2, 3, 4, 4]
    assert best(run.folder.checkpoints).name == f"step-{checkpoint.state.progress.best_step:06}"
    run.folder.note("resumed", "to see that lines stay whole")
    assert run.folder.journal.read_text().count("\n") == len(read_lines(run.folder.journal))


def test_rewinding_drops_an_evaluation_that_is_still_to_be_made(run: Recorded) -> None:
    checkpoint = load_checkpoint(run.folder.checkpoints / "step-000004", run.plan)
    progress = replace(checkpoint.state.progress, unevaluated=True)
    rewind(run.folder, replace(checkpoint, state=replace(checkpoint.state, progress=progress)))
    assert [line["step"] for line in run.folder.evaluations()] == [0, 2]
    assert [line["step"] for line in run.folder.steps()] == [1, 2, 3, 4]


def test_a_run_that_goes_on_is_the_uninterrupted_one(run: Recorded, tmp_path: Path) -> None:
    expected = run.end()
    other = Recorded.start(run.plan, tmp_path / "other")
    for event in other.events():
        other.recorder.handle(event)
        if isinstance(event, Stepped) and event.step == 5:
            break
    assert other.resumed().end() == expected


def test_a_run_that_ran_away_is_resumed_as_if_never_interrupted(tmp_path: Path) -> None:
    """Interrupted after any event: before, while and after the loss is high and it goes back."""
    sizes = {"steps": 14, "eval_every": 4, "save_every": 3, "keep": 1, "learning_rate": 6.0}
    plan = make_plan(tmp_path / "model", **sizes)
    whole = Recorded.start(plan, tmp_path / "whole").train()
    backs = [n for n in read_lines(whole.folder.journal) if n["what"] == "back to a checkpoint"]
    assert backs
    assert all(note["learning_rate"] < 6.0 for note in backs)
    events = len(list(Recorded.start(plan, tmp_path / "counted").events_recorded()))
    for number in range(2, events, 4):
        other = Recorded.start(plan, tmp_path / str(number))
        for _ in islice(other.events_recorded(), number):
            pass
        assert other.resumed().end() == whole.end(), number


def test_logs_survive_what_cuts_them_off(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_lines(log) == []
    assert keep_lines(log, lambda _: True) == 0
    for step in range(3):
        append_line(log, {"step": step})
    whole = log.read_bytes()
    for end in range(len(whole)):
        log.write_bytes(whole[:end])
        kept = whole[:end].count(b"\n")
        assert [line["step"] for line in read_lines(log)] == list(range(kept))
    odd = [b"\0\0\xff", b"17", b"[" * 50_000, b'{"step": NaN}', b"1" * 5000, b"x" * (1 << 21)]
    log.write_bytes(whole + b"".join(line + b"\n" for line in odd))
    assert keep_lines(log, lambda line: line["step"] != 1) > len(odd)
    assert [line["step"] for line in read_lines(log)] == [0, 2]


def test_a_number_that_json_does_not_know_is_never_logged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(tmp_path / "log.jsonl", {"loss": float("nan")})


def test_a_disk_that_fails_is_named_and_costs_no_checkpoint(run: Recorded) -> None:
    before = run.end()
    run.folder.metrics.unlink()
    run.folder.metrics.mkdir()
    with pytest.raises(DiskError) as caught:
        run.recorder.handle(
            Evaluated(step=6, loss=1.0, perplexity=2.0, accuracy=0.5, rows=1, best=False)
        )
    assert f"The run cannot be written to {run.folder.path}: metrics.jsonl is not a file" in str(
        caught.value
    )
    run.folder.metrics.rmdir()
    assert run.end()["newest"] == before["newest"]


def test_no_memory_to_save_with_is_said_and_costs_no_checkpoint(
    run: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run.end()

    def fail(*, copied: bool) -> None:
        raise MemoryError("Unable to allocate 48.0 KiB")

    monkeypatch.setattr(run.session, "optimizer_tensors", fail)
    with pytest.raises(OutOfMemoryError, match=r"no memory left to save .* Unable to") as caught:
        run.recorder.handle(SaveDue(state=RunState(step=7)))
    assert run.folder.resume_command in str(caught.value)
    assert names(run.folder.checkpoints) == ["best", "step-000002", "step-000004", "step-000006"]
    assert run.end()["newest"] == before["newest"]


def test_a_folder_is_made_once(run: Recorded) -> None:
    path = run.folder.path
    with pytest.raises(UsageError, match="exists already"):
        RunFolder.check(path)
    with pytest.raises(UsageError, match="cannot be made"):
        RunFolder.create(path, run.plan, {})
    assert sorted(file.name for file in path.parent.iterdir()) == ["run"]


def test_an_empty_folder_is_taken(plan: Plan, tmp_path: Path) -> None:
    RunFolder.check(tmp_path)
    assert RunFolder.create(tmp_path, plan, {}).plan.is_file()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    with pytest.raises(UsageError, match="it is not empty"):
        RunFolder.check(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        RunFolder.check(tmp_path / "letter")
    with pytest.raises(UsageError, match="Not a directory"):
        RunFolder.check(tmp_path / "letter" / "run")
    with pytest.raises(UsageError, match="is not a run folder"):
        RunFolder.open(tmp_path)
    assert names(tmp_path) == ["letter"]


def test_one_process_at_a_time(run: Recorded) -> None:
    with run.folder.locked(), pytest.raises(UsageError, match="Another process is at work"):
        run.folder.locked().__enter__()
    with run.folder.locked():
        pass


def test_the_optimizer_file_is_plain_safetensors(run: Recorded) -> None:
    state = load_file(latest(run.folder.checkpoints) / "optimizer.safetensors")
    assert int(state["step"]) == 6


def _lines(run: Recorded, event: str) -> list[dict[str, float]]:
    return [line for line in read_lines(run.folder.metrics) if line["event"] == event]


def test_a_lock_names_its_holder_and_nobody_afterwards(run: Recorded) -> None:
    assert holder(run.folder.path) is None
    with run.folder.locked():
        assert holder(run.folder.path) == os.getpid()
    assert holder(run.folder.path) is None


def test_a_lock_of_a_process_that_is_gone_or_another_now_holds_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = psutil.Process(process.pid).create_time()
    for said, found in ((began, process.pid), (began - 60, None)):
        (tmp_path / LOCK).write_text(f"{process.pid} {said}\n")
        assert holder(tmp_path) is None  # as in a copy of its folder
        with (tmp_path / LOCK).open("rb") as file:
            lock(file)
            assert holder(tmp_path) == found
    process.communicate()
    (tmp_path / LOCK).write_text(f"{process.pid} {began}\n")
    assert holder(tmp_path) is None
    for damaged in ("", "x y\n", f"{process.pid}", "9" * 60 + " 1"):
        (tmp_path / LOCK).write_text(damaged)
        assert holder(tmp_path) is None


def test_a_folder_keeps_what_its_run_was_told(tmp_path: Path) -> None:
    told = RunOptions(verdict=False, samples=0, strict=True, log=("wandb",))
    AS_USUAL.keep(tmp_path)
    assert names(tmp_path) == [], "a folder of an earlier build says the same"
    told.keep(tmp_path)
    assert RunOptions.of(tmp_path) == told
    AS_USUAL.keep(tmp_path)
    assert RunOptions.of(tmp_path) == AS_USUAL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", AS_USUAL),
        ("[]", AS_USUAL),
        ("[" * 100_000, AS_USUAL),
        ('{"samples": true, "log": [1], "other": 1, "strict": true}', RunOptions(strict=True)),
    ],
)
def test_damaged_options_are_as_by_default(text: str, expected: RunOptions, tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text(text)
    assert RunOptions.of(tmp_path) == expected
