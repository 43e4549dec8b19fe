"""Rates raced before a run: the run is what it is with the winner's rate, bit for bit; stops keep races."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from measurements import plain_measurements
from rows import write_rows

from conformance.backends import BACKENDS, WAYS
from edgetune.cli.plan_text import plan_text
from edgetune.errors import StoppedError, UsageError
from edgetune.events import Event, RateChosen, RateRaced, Stepped
from edgetune.files import sha256_file
from edgetune.planning import read_plan_file
from edgetune.racing import lengths
from edgetune.report import Report, render
from edgetune.speed import save_measurements
from edgetune.workflows.after import After
from edgetune.workflows.job import work_of
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.races import judges_of
from edgetune.workflows.resuming import resume_run
from edgetune.workflows.searching import START
from edgetune.workflows.training import Run, start_run

PLAIN = After(verdict=False, samples=0)
STEPS, EACH = 14, 3


def request(name: str, folder: Path, **training: Any) -> PlanRequest:
    settings = {"steps": STEPS, "eval_every": 7, "validation": 0.1, **training}
    return PlanRequest(
        model="tiny", data=write_rows(folder / "rows.jsonl"), device=WAYS[name].device,
        choice={"rank": 2, "targets": ("q_proj", "v_proj"), "dropout": 0.1, "micro_batch": 2, "accumulation": 1},
        training=settings,
    )  # fmt: skip


def begun(name: str, folder: Path, **training: Any) -> Run:
    return start_run(plan_for(request(name, folder.parent, **training)), folder)


def ended(run: Run) -> list[Event]:
    with closing(run):
        return list(run.events(pilot=False, after=PLAIN))


def files(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha256_file(file)
        for part in ("adapter", "checkpoints") for file in sorted((folder / part).rglob("*"))
        if file.is_file()
    }  # fmt: skip


QUICK, *SLOW = BACKENDS
"""One takes seconds here; the others compile for minutes what the pilot's tests try of them, too."""


@pytest.mark.parametrize("name", [QUICK, *(pytest.param(x, marks=pytest.mark.long) for x in SLOW)])
def test_a_searched_run_is_the_run_with_that_rate(name: str, tmp_path: Path) -> None:
    searched, stopped, plain = tmp_path / "searched", tmp_path / "stopped", tmp_path / "plain"
    events = ended(begun(name, searched, search="lr"))
    raced = [event.race for event in events if isinstance(event, RateRaced)]
    (chosen,) = (event for event in events if isinstance(event, RateChosen))
    assert len(raced) == 2
    assert all(race.is_whole for race in raced)
    assert raced[0].loss != raced[1].loss
    assert sum(isinstance(event, Stepped) for event in events) == STEPS, "races are no steps"
    ended(begun(name, plain, learning_rate=chosen.rate))
    assert files(searched) == files(plain)

    plan = read_plan_file(searched / "plan.yaml")
    assert plan["training"]["learning_rate"] == chosen.rate
    assert chosen.because in plan["reasons"]
    html = render(Report.of(searched))
    assert "Learning rates raced" in html
    assert f'<th scope="row">{raced[1].rate:g}</th>' in html
    assert not (searched / START).exists()

    answers = iter([False] * (EACH + 1) + [True] * 9)
    with closing(begun(name, stopped, search="lr")) as run:
        events = run.events(lambda: next(answers), pilot=False, after=PLAIN)
        first = next(events)
        assert isinstance(first, RateRaced)
        with pytest.raises(StoppedError, match="was raced; races that ended are kept"):
            list(events)
    assert Report.of(stopped).status.resumable
    rest = [event.race for event in ended(resume_run(stopped)) if isinstance(event, RateRaced)]
    assert [race.rate for race in rest] == [raced[1].rate], "the first is not raced again"
    assert rest[0].loss == raced[1].loss
    assert files(stopped) == files(searched)
    assert json.loads((stopped / "search.json").read_text())["chosen"] == chosen.rate


def test_a_damaged_record_of_races_is_named_and_all_are_raced_again(tmp_path: Path) -> None:
    answers = iter([False] * (EACH + 1) + [True] * 9)
    with closing(begun(QUICK, tmp_path / "run", search="lr")) as run:
        events = run.events(lambda: next(answers), pilot=False, after=PLAIN)
        first = next(events)
        assert isinstance(first, RateRaced)
        with pytest.raises(StoppedError):
            list(events)
    record = tmp_path / "run" / "search.json"
    record.write_text(record.read_text().replace('"rate"', '"rat"'))
    run = resume_run(tmp_path / "run")
    assert "search.json cannot be read: races[0].rat is not known" in run.notices[0]
    with closing(run):
        again = next(run.events(pilot=False, after=PLAIN))
    assert isinstance(again, RateRaced)
    assert again.race.loss == first.race.loss


def test_an_objective_whose_terms_need_all_rows_is_raced(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}", "completion": str(i), "label": i % 2 == 0} for i in range(24)]
    asked = request(QUICK, tmp_path, search="lr", objective="kto", validation=0.25)
    asked = replace(asked, data=write_rows(tmp_path / "kto.jsonl", rows))
    with closing(start_run(plan_for(asked), tmp_path / "kto")) as run:
        first = next(run.events(pilot=False, after=PLAIN))
    assert isinstance(first, RateRaced)
    assert first.race.loss is not None
    assert 0 < first.race.loss < 2


def test_what_races_are_judged_by_is_a_share_of_the_run(tmp_path: Path) -> None:
    asked = request(QUICK, tmp_path, search="lr", packing=False)
    asked = replace(asked, choice={**asked.choice, "micro_batch": 8, "context": 128})
    with closing(start_run(plan_for(asked), tmp_path / "run")) as run:
        length = lengths(STEPS)
        judges = judges_of(run.job, length.races)
        judged = sum(batch.tokens.size for batch in (*judges.neutral, *judges.validation))
        work = work_of(run.job.plan, run.job.dataset)
    trained = sum(each.count * each.rows * each.width for each in work.epoch)
    steps = trained * work.steps / work.steps_per_epoch
    assert 0 < length.races * judged / 2 <= 0.15 * steps, "an evaluated token costs half"


@pytest.mark.parametrize("steps", [14, 60, 1000])
def test_the_plan_tells_what_races_cost(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    save_measurements(plain_measurements(QUICK))
    asked = request(QUICK, tmp_path, steps=steps)
    plain = plan_for(asked).plan.time.run
    plan = plan_for(replace(asked, training={**asked.training, "search": "lr"})).plan
    run = plan.time.run
    assert plain is not None
    assert run is not None
    assert (plain.search, plain.steps) == (0.0, run.steps)
    assert 0.2 * run.steps < run.search <= 0.6 * (run.steps + run.evaluations)
    assert run.total == pytest.approx(plain.total + run.search)
    assert "races of rates" in " ".join(plan_text(plan).split())


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"learning_rate": 1e-3}, "Leave one out"),
        ({"validation": 0.0}, "judges rates on validation rows"),
        ({"steps": 13}, "a run of 13 steps is too short"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    training: dict[str, Any], message: str, tmp_path: Path
) -> None:
    name = next(iter(BACKENDS))
    with pytest.raises(UsageError, match=message):
        plan_for(request(name, tmp_path, search="lr", **training))
