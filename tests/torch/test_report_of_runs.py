"""The report that real runs leave behind: stopped, resumed, finished, exported, not better than the base."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rows import write_rows

from edgetune.errors import NoImprovementError, StoppedError
from edgetune.events import Judged, Stepped
from edgetune.files import sha256_file
from edgetune.report import Report
from edgetune.workflows.after import After
from edgetune.workflows.exporting import ExportOptions, export_run
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.resuming import resume_run
from edgetune.workflows.training import Run, start_run

QUICK = After(verdict=False, samples=1)


def begun(folder: Path, **training: Any) -> Run:
    settings = {"steps": 4, "eval_every": 2, "validation": 0.1, "learning_rate": 0.01, **training}
    data = write_rows(folder.parent / "rows.jsonl")
    choice = {"rank": 2, "micro_batch": 2}
    request = PlanRequest(model="tiny", data=data, device="cpu", choice=choice, training=settings)
    return start_run(plan_for(request), folder)


def shown(folder: Path) -> str:
    return re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text().split("</style>")[1])


def follow(run: Run, seen: list[str]) -> None:
    """Take two steps, and keep what the report says after each."""
    events = run.events(stop=lambda: len(seen) == 2, pilot=False, after=QUICK)
    seen.extend(shown(run.folder.path) for event in events if isinstance(event, Stepped))


def test_stopped_then_resumed_then_exported(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    seen: list[str] = []
    with closing(begun(folder)) as run, pytest.raises(StoppedError):
        follow(run, seen)
    assert "running" in seen[0]
    assert "Step 0 of 4" in seen[0] or "Step 1 of 4" in seen[0]
    told = shown(folder)
    assert "stopped" in told
    assert "Step 2 of 4" in told
    assert "exit code 6" in told
    assert f"edgetune train --resume --output {folder}" in told
    with closing(resume_run(folder)) as run:
        list(run.events(pilot=False, after=QUICK))
    told = shown(folder)
    assert "finished" in told
    assert "Step 4 of 4" in told
    assert "exit code" not in told
    assert "Resumed" in told
    (sample,) = json.loads((folder / "samples.json").read_text())["samples"]
    assert sample["place"] in told
    assert sample["expected"] in told
    phases = json.loads((folder / "memory.json").read_text())["phases"]
    assert set(phases) == {"load", "train", "evaluate", "save"}
    assert phases["load"]["exact"]
    adapter = sha256_file(folder / "adapter" / "adapter_model.safetensors")
    with closing(resume_run(folder)) as run:
        (told_of,) = run.events(after=After(samples=0))
    assert isinstance(told_of, Judged)
    assert told_of.verdict.sentence.split(":")[0] in shown(folder)
    assert sha256_file(folder / "adapter" / "adapter_model.safetensors") == adapter
    export_run(str(folder), "peft", tmp_path / "peft", ExportOptions())
    assert "Exports of this run" in (folder / "report.html").read_text()


def test_a_run_that_is_not_better_than_the_base_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with closing(begun(folder, steps=2, learning_rate=1e-12)) as run:
        try:
            list(run.events(pilot=False, after=After(samples=2)))
            ended = False
        except NoImprovementError:
            ended = True
    report = Report.of(folder)
    verdict = json.loads((folder / "verdict.json").read_text())
    found = json.loads((folder / "samples.json").read_text())
    assert verdict["answers"]["count"] == len(found["samples"]) == 2
    assert verdict["answers"]["right"] == sum(one["right"]["tuned"] for one in found["samples"])
    assert "sampled answers exactly right" in verdict["sentence"]
    assert found["special"]
    assert any(text in found["samples"][0]["prompt"] for text in found["special"])
    assert (report.status.kind == "failed") is ended
    assert verdict["outcome"] == ("did not help" if ended else "learned little")
    assert verdict["sentence"] in shown(folder)
