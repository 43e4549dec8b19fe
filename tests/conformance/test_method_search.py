"""Methods raced before a run: the run is what it is with the winner; what does not fit is not raced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from measurements import plain_measurements

from conformance.test_searching import QUICK, SLOW, ended, files, request
from edgetune.backend import DeviceOutOfMemoryError, Session
from edgetune.cli.plan_text import plan_text
from edgetune.errors import StoppedError, UsageError
from edgetune.methods import build
from edgetune.model import LocalModel
from edgetune.planning import Plan
from edgetune.report import Report, render
from edgetune.settings.spec import values
from edgetune.speed import save_measurements
from edgetune.workflows.method_search import chosen, keep, kept_at
from edgetune.workflows.opening import open_session
from edgetune.workflows.planning import PreparedPlan, plan_for, replanned
from edgetune.workflows.training import start_run

METHODS = ("lora", "bitfit")
"""Races for a run of 14 steps: there are no more."""
EACH = 3


def planned(name: str, folder: Path, **training: Any) -> PreparedPlan:
    settings = {"search": "method", "search_methods": METHODS, **training}
    return plan_for(request(name, folder, **settings))


def run_of(prepared: PreparedPlan, record: Mapping[str, Any] | None, folder: Path) -> None:
    run = start_run(prepared, folder)
    keep(record, run.folder)
    ended(run)


@pytest.mark.parametrize("name", [QUICK, *(pytest.param(x, marks=pytest.mark.long) for x in SLOW)])
def test_the_run_is_that_of_the_method_that_wins(name: str, tmp_path: Path) -> None:
    searched, plain, said = tmp_path / "searched", tmp_path / "plain", []
    prepared, record = chosen(planned(name, tmp_path), searched, said.append)
    assert record is not None
    assert [race["method"] for race in record["races"]] == list(METHODS)
    losses = [race["loss"] for race in record["races"]]
    assert len(set(losses)) == len(METHODS)
    assert len(said) == len(METHODS) + 1
    run_of(prepared, record, searched)
    assert not kept_at(searched).exists()

    winner = prepared.plan.choice.method.kind
    assert record["chosen"] == winner
    assert losses[METHODS.index(winner)] <= 1.34 * min(losses), "drift decides among the nearest"
    assert record["because"] in prepared.plan.reasons
    asked = request(name, tmp_path)
    choice = prepared.plan.choice
    settings = values(choice) | values(choice.method) | {"method": winner}
    asked = replace(asked, choice=settings)
    run_of(plan_for(asked), None, plain)
    assert files(searched) == files(plain)
    html = render(Report.of(searched))
    assert "Methods raced" in html
    assert '<th scope="row">bitfit</th>' in html


def test_races_that_ended_are_not_raced_again(tmp_path: Path) -> None:
    folder, prepared = tmp_path / "run", planned(QUICK, tmp_path)
    answers = iter([False] * (EACH + 1) + [True] * 9)
    with pytest.raises(StoppedError, match="while bitfit was raced; races that ended are kept"):
        chosen(prepared, folder, lambda _: None, lambda: next(answers))
    (first,) = json.loads(kept_at(folder).read_text())["races"]
    said: list[str] = []
    _, record = chosen(prepared, folder, said.append)
    assert record is not None
    assert record["races"][0] == first
    assert [text.split(":")[0] for text in said[:2]] == ["Raced bitfit", "Chosen"]

    other = planned(QUICK, tmp_path, steps=28)
    _, record = chosen(other, folder, said.append)
    assert record is not None
    assert record["races"][0] != first, "another run races anew"


@pytest.mark.parametrize("damage", ["cut off", "[1]", '{"races": 1}', '{"races": [{"rate": "x"}]}'])
def test_a_damaged_record_of_races_is_named_and_all_are_raced_again(
    damage: str, tmp_path: Path
) -> None:
    said: list[str] = []
    kept_at(tmp_path / "run").write_text(damage)
    _, record = chosen(planned(QUICK, tmp_path), tmp_path / "run", said.append)
    assert "run.search.json cannot be read" in said[0]
    assert record is not None
    assert len(record["races"]) == len(METHODS)


def test_a_method_that_runs_out_of_memory_leaves_the_race_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(plan: Plan, model: LocalModel) -> Session:
        if plan.choice.method.kind == "lora":
            raise DeviceOutOfMemoryError("no room for its gradients")
        return open_session(plan, model)

    monkeypatch.setattr("edgetune.workflows.method_search.open_session", opened)
    said: list[str] = []
    winner, record = chosen(planned(QUICK, tmp_path), tmp_path / "run", said.append)
    assert winner.plan.choice.method.kind == "bitfit"
    assert record is not None
    assert record["races"][0]["because"] == "out of memory: no room for its gradients"
    assert said[0] == "Raced lora: out of memory: no room for its gradients"


def test_what_is_too_large_or_cannot_be_is_not_raced(tmp_path: Path) -> None:
    asked = request(QUICK, tmp_path, search="method", search_size=0.2)
    asked = replace(asked, choice={"micro_batch": 2, "accumulation": 1, "quantization": "nf4"})
    prepared = plan_for(
        replace(
            asked, training={**asked.training, "search_methods": ("bitfit", "norm", "lora", "full")}
        )
    )
    assert [one.kind for one in prepared.candidates] == ["bitfit", "norm"]
    reasons = "\n".join(prepared.plan.reasons)
    assert "lora is not raced: its adapter takes" in reasons
    assert "full is not raced: --method full trains the weights themselves" in reasons


def test_a_plan_that_was_kept_races_each_method_at_its_own_rate(tmp_path: Path) -> None:
    asked = request(QUICK, tmp_path, search="method", search_methods=METHODS)
    first = plan_for(asked)
    again = plan_for(replanned(first.plan, replace(asked, choice={}, training={})))
    for one, other in zip(first.candidates, again.candidates, strict=True):
        assert one.prepared is not None
        assert other.prepared is not None
        assert one.kind == other.kind
        assert one.prepared.plan.choice.method.kind == one.kind
        assert one.prepared.plan.training == other.prepared.plan.training
        assert one.prepared.plan.choice == other.prepared.plan.choice
    rates = {x.prepared.plan.training.learning_rate for x in first.candidates if x.prepared}
    assert len(rates) == len(METHODS)
    why, first_why = ([x for x in made.plan.reasons if "--search" in x] for made in (again, first))
    assert why == first_why
    assert "bitfit is raced without --dropout, --rank, which it does not have" in "\n".join(why)


def test_what_was_changed_in_a_plan_file_is_kept_or_refused(tmp_path: Path) -> None:
    asked = request(QUICK, tmp_path, search="method", search_methods=METHODS)
    asked = replace(asked, choice={"micro_batch": 2})
    first = plan_for(asked).plan
    bare = replace(asked, choice={}, training={})

    def again(**choice: Any) -> PreparedPlan:
        return plan_for(replanned(replace(first, choice=replace(first.choice, **choice)), bare))

    edited = again(method=replace(first.choice.method, rank=5), accumulation=3)
    plans = {one.kind: one.prepared.plan for one in edited.candidates if one.prepared}
    assert values(plans["lora"].choice.method)["rank"] == 5
    assert {plan.choice.accumulation for plan in plans.values()} == {3}
    why = "\n".join(edited.plan.reasons)
    assert "all are raced with rank as the plan file has it" in why
    assert "bitfit is raced without --rank" in why
    assert "micro batch as the plan file" not in why
    with pytest.raises(
        UsageError, match=r"has method bitfit and was made with lora.* put lora back"
    ):
        again(method=build("bitfit", {}))
    faster = replace(first, training=replace(first.training, learning_rate=0.5))
    with pytest.raises(UsageError, match=r"has learning_rate 0\.5 and was made with"):
        plan_for(replanned(faster, bare))


def test_a_setting_of_a_raced_method_alone_is_that_methods(tmp_path: Path) -> None:
    asked = request(QUICK, tmp_path, search="method", search_methods=("lora", "adapter"))
    choice = {**asked.choice, "bottleneck": 16}
    prepared = plan_for(replace(asked, choice=choice))
    plans = {one.kind: one.prepared for one in prepared.candidates}
    assert plans["adapter"] is not None
    assert values(plans["adapter"].plan.choice.method)["bottleneck"] == 16
    assert "lora is raced without --bottleneck, which it does not have" in "\n".join(
        prepared.plan.reasons
    )


@pytest.mark.parametrize(
    ("choice", "training", "message"),
    [
        ({"method": "lora"}, {}, "--method fixes it"),
        ({}, {"search_methods": ("lora", "lore")}, "there is no method lore"),
        ({}, {"search_methods": ("lora",)}, "lora is left of lora"),
        ({}, {"validation": 0.0}, "judges methods on validation rows"),
        ({}, {"steps": 13}, "a run of 13 steps is too short"),
        ({}, {"learning_rate": 1e-3}, "--learning-rate fixes one"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    choice: dict[str, Any], training: dict[str, Any], message: str, tmp_path: Path
) -> None:
    asked = request(QUICK, tmp_path, search="method", **training)
    with pytest.raises(UsageError, match=message):
        plan_for(replace(asked, choice={**asked.choice, **choice}))


@pytest.mark.parametrize("steps", [14, 60, 1000])
def test_the_plan_tells_what_races_cost(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    save_measurements(plain_measurements(QUICK))
    plain = plan_for(request(QUICK, tmp_path, steps=steps)).plan.time.run
    prepared = planned(QUICK, tmp_path, steps=steps)
    run = prepared.plan.time.run
    assert plain is not None
    assert run is not None
    assert len(prepared.candidates) >= 2
    assert 0 < run.search <= 0.6 * plain.total
    assert run.total == pytest.approx(plain.total + run.search)
    assert "races of methods" in " ".join(plan_text(prepared.plan).split())


def test_races_of_a_run_that_may_end_early_are_a_share_of_what_it_takes_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    save_measurements(plain_measurements(QUICK))
    training = {"steps": 1000, "patience": 3, "eval_every": 100}
    whole = planned(QUICK, tmp_path, steps=1000)
    early = planned(QUICK, tmp_path, **training)
    ended = plan_for(request(QUICK, tmp_path, steps=400, eval_every=100)).plan.time.run
    run = early.plan.time.run
    assert whole.plan.time.run is not None
    assert ended is not None
    assert run is not None
    assert len(early.candidates) >= 2
    assert 0 < run.search <= 0.6 * ended.total < 0.6 * whole.plan.time.run.total
    assert "raced for 40 steps each" in "\n".join(early.plan.reasons)
