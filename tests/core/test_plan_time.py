"""The time of runs: what small models, long runs and evaluations add, and what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest
from measurements import plain_measurements
from mixed_shapes import mixed, narrower
from planning import card, plan_of, processor, shape_of
from rows import write_rows

from edgetune.choice import Choice
from edgetune.cli.plan_text import plan_line, plan_text
from edgetune.device import Device, read_device
from edgetune.methods import build
from edgetune.planning import Plan, make_plan
from edgetune.settings.spec import values
from edgetune.speed import (
    Experience,
    Measurements,
    Rectangle,
    RunEstimate,
    TimeModel,
    Work,
    judging_limit,
    load_measurements,
    rates_of,
    rectangles,
    run_estimate,
    save_measurements,
    settings_of,
    shortest_seconds,
    versions_of,
)
from edgetune.speed.head import loss_seconds
from edgetune.speed.rates import Rates
from edgetune.workflows.experience import NEAR, learn
from edgetune.workflows.planning import PlanRequest, plan_for

WORK = Work(
    steps=20,
    shortest=20,
    steps_per_epoch=10,
    evaluations=3,
    saves=2,
    epoch=(Rectangle(10, 4, 128),),
    evaluation=(Rectangle(5, 4, 64),),
    pilot=(Rectangle(1, 4, 128),),
)


def _model(device: Device | None = None, model: str = "smollm2-135m") -> tuple[TimeModel, Choice]:
    place = device or processor()
    shape = shape_of(model)
    plan = make_plan(place, model, shape, fixed={"method": "lora", "context": 128}, training={})
    return TimeModel(shape, plan.choice.method, rates_of(place)), plan.choice


def test_equal_micro_batches_are_counted_together() -> None:
    assert rectangles([(8, 64), (8, 128), (8, 64), (3, 64)]) == (
        Rectangle(1, 3, 64),
        Rectangle(2, 8, 64),
        Rectangle(1, 8, 128),
    )


def test_a_run_is_its_steps_evaluations_and_saves() -> None:
    time, choice = _model()
    once = run_estimate(time, choice, WORK)
    twice = run_estimate(time, choice, replace(WORK, steps=40, evaluations=6, saves=4))
    assert twice.steps == pytest.approx(2 * once.steps)
    assert twice.evaluations == pytest.approx(2 * once.evaluations)
    assert twice.saves == pytest.approx(2 * once.saves)
    assert twice.opening == once.opening > 0
    largest = time.evaluation(WORK.evaluation[0].of(choice))
    save = once.saves / WORK.saves
    assert once.pilot == pytest.approx(time.step_of(choice, WORK.pilot) + largest + save)
    parts = once.opening, once.pilot, once.steps, once.evaluations, once.saves
    assert once.total == pytest.approx(sum(parts))


def test_the_pilot_is_a_step_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many micro-batches are asked for, no step has more than an epoch."""
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path))
    data = write_rows(tmp_path / "rows.jsonl")

    def planned(accumulation: int) -> RunEstimate:
        choice = {"micro_batch": 2, "accumulation": accumulation}
        training = {"packing": False, "epochs": 1.0, "validation": 0.2}
        request = PlanRequest(
            model="tiny", data=data, device="cpu-laptop-16gb", choice=choice, training=training
        )
        run = plan_for(request).plan.time.run
        assert run is not None
        return run

    whole, beyond = planned(8), planned(100_000)  # 16 rows
    assert beyond.pilot == pytest.approx(whole.pilot)
    assert whole.steps < whole.pilot < whole.steps + whole.evaluations + whole.saves


def test_a_plan_tells_all_that_a_run_takes() -> None:
    plan = plan_of("smollm2-135m", processor())
    run = RunEstimate(
        opening=10.0, loading=4.0, pilot=2.5, steps=30.0, evaluations=5.0, saves=1.5, judging=6.0
    )
    known = replace(plan, time=replace(plan.time, run=run))
    told = "opening 10.0 s, pilot 2.5 s, steps 30.0 s, evaluation 5.0 s, saves 1.5 s, verdict 6.0 s"
    assert f"about 55.0 s in all: {told}" in " ".join(plan_text(known).split())
    assert plan_line(known).endswith(", about 55.0 s")
    bare = replace(plan, time=replace(plan.time, run=replace(run, saves=0.0, judging=0.0)))
    assert "evaluation 5.0 s\n" in plan_text(bare)


def test_a_verdict_takes_what_is_read_and_answered_until_time_is_up() -> None:
    time, choice = _model()
    none, long = run_estimate(time, choice, WORK), replace(WORK, steps=10**7)
    assert none.judging == 0.0
    text, answers = (Rectangle(1, 1, 128),), ((40, 64), (10, 64))
    read = run_estimate(time, choice, replace(WORK, neutral=text)).judging
    assert read == pytest.approx(2 * time.evaluation(text[0].of(choice)))
    both = run_estimate(time, choice, replace(long, neutral=text, answers=answers)).judging
    tokens = 128 * time.evaluation(Rectangle(1, 1, 2).of(choice))
    prompts = sum(time.evaluation(Rectangle(1, 2, asked).of(choice)) for asked, _ in answers)
    assert both == pytest.approx(read + tokens + prompts)
    endless = run_estimate(time, choice, replace(WORK, neutral=(Rectangle(10**9, 1, 128),)))
    assert endless.judging == pytest.approx(judging_limit(endless.steps) + read)
    assert endless.total == pytest.approx(none.total + endless.judging)


def test_an_evaluation_costs_less_than_a_step_on_the_same_rows() -> None:
    time, choice = _model()
    assert 0 < time.evaluation(choice) < 0.6 * time.micro_batch(choice)


def test_a_head_on_disk_is_read_as_often_in_an_evaluation() -> None:
    device = processor()
    shape, rates = shape_of("llama-3.2-1b"), rates_of(device)
    plan = make_plan(device, "llama-3.2-1b", shape, fixed={"head": "disk"}, training={})
    choice, slow = plan.choice, replace(rates, disk=rates.disk / 2)

    def brought(**options: bool) -> float:
        halved, whole = (
            loss_seconds(shape, each, choice, trained=False, **options) for each in (slow, rates)
        )
        return halved - whole

    assert 0 < brought(graded=False) == pytest.approx(brought())


def test_small_models_are_bound_by_their_operations() -> None:
    """A token more costs next to nothing in a tiny model, and its share in a large one."""
    time, choice = _model(model="tiny")
    one = replace(choice, micro_batch=1, context=8)
    assert time.seconds(replace(one, context=16)) < 1.2 * time.seconds(one)
    large, wide = _model(model="tinyllama-1.1b")
    many = replace(wide, micro_batch=4, context=256)
    assert large.seconds(replace(many, context=512)) > 1.7 * large.seconds(many)


def test_a_card_computes_while_operations_are_issued() -> None:
    time, choice = _model(card())
    slow = TimeModel(time.shape, choice.method, _issuing(time.rates, 1e-3))
    none = TimeModel(time.shape, choice.method, _issuing(time.rates, 0.0))
    assert time.micro_batch(choice) >= none.micro_batch(choice)
    assert slow.micro_batch(choice) > 10 * none.micro_batch(choice)
    assert time.micro_batch(choice) < none.micro_batch(choice) + _issued(time, none, choice)


def _issuing(rates: Rates, seconds: float) -> Rates:
    return replace(rates, operation=seconds)


def _issued(time: TimeModel, none: TimeModel, choice: Choice) -> float:
    """Return what issuing alone takes: on a processor it adds to the work."""
    alone = replace(time.rates, asynchronous=False)
    work = TimeModel(time.shape, choice.method, alone)
    return work.micro_batch(choice) - none.micro_batch(choice) + 1e-12


def test_the_shortest_of_many_tries_counts() -> None:
    tries = iter([0.05, 0.02, 0.002, 0.03, *[0.01] * 100])
    assert 0.002 <= shortest_seconds(lambda: sleep(next(tries))) < 0.01
    assert len(list(tries)) < 100, "it is tried for as long as there is time"
    slow = iter([0.02] * 4)
    assert shortest_seconds(lambda: sleep(next(slow)), within=0.0) >= 0.02
    assert list(slow) == []


def test_small_tensors_do_not_save_what_threads_wait_for() -> None:
    device = replace(read_device("cpu"), kind="cpu")
    rates = rates_of(device, plain_measurements())
    time, choice = _model(processor())
    shared = TimeModel(time.shape, choice.method, rates)
    alone = TimeModel(time.shape, choice.method, replace(rates, sharing=0.0))
    choice = replace(choice, micro_batch=1, context=64)  # a single piece of everything
    waits = shared.touched(choice) - alone.touched(choice)
    small = replace(choice, context=16)
    assert waits > 0
    assert shared.touched(small) - alone.touched(small) == pytest.approx(waits)
    assert rates_of(card(), plain_measurements()).sharing == 0.0


def _kept() -> Measurements:
    found = load_measurements(read_device("cpu").name, versions_of("torch"))
    assert found is not None
    return found


def _planned(model: str = "smollm2-135m", **fixed: object) -> Plan:
    device = read_device("cpu")
    return make_plan(device, model, shape_of(model), fixed=fixed, training={}, measured=_kept())


def test_later_plans_know_what_steps_took() -> None:
    save_measurements(plain_measurements())
    shapes = [(2, 64), (1, 128)]
    plan = _planned(method="lora")
    times = TimeModel(plan.shape, plan.choice.method, rates_of(read_device("cpu"), _kept()))
    predicted = times.step_of(plan.choice, rectangles(shapes))
    assert predicted == pytest.approx(
        sum(times.micro_batch(part.of(plan.choice)) for part in rectangles(shapes))
        + times.update(plan.choice)
    )

    assert learn(plan, [(shapes, predicted / 1.2)], NEAR) is None  # a pilot: near enough
    assert _kept().experience == ()
    told = learn(plan, [(shapes, predicted * 9), (shapes, predicted * 2), (shapes, predicted)])
    assert told is not None
    assert told.share == pytest.approx(2)  # the median

    same = values(plan.choice) | {"method": "lora"}
    seconds = plan.time.seconds_per_step
    assert _planned(**same).time.seconds_per_step == pytest.approx(2 * seconds)
    learn(plan, [(shapes, predicted / 2)], NEAR)
    assert _planned(**same).time.seconds_per_step == pytest.approx(seconds / 2)
    assert len(_kept().experience) == 1  # the newer one


def test_experience_is_of_a_method_a_way_and_a_width() -> None:
    plan = _planned(method="lora", quantization="none", compute_dtype="float32")
    choice = plan.choice

    def share(*told: tuple[str, int, float, str | None], hidden: int = 512) -> float:
        experience = tuple(
            Experience(way=way, hidden_size=size, share=times, method=method)
            for way, size, times, method in told
        )
        rates = replace(rates_of(read_device("cpu"), _kept()), experience=experience)
        return rates.share(choice, hidden)

    used = "none/float32"
    assert share() == 1
    assert share(("nf4/float32", 512, 3, "lora"), ("none/bfloat16", 512, 3, None)) == 1
    assert share((used, 512, 3, None), (used, 512, 2, "lora"), (used, 512, 9, "dora")) == 2
    assert share((used, 256, 3, None), (used, 512, 2, None), hidden=300) == 3
    assert share((used, 256, 3, None), (used, 512, 2, None), hidden=480) == 2
    assert share((used, 256, 3, None), (used, 512, 2, None), hidden=4096) == 1
    assert share((used, 4000, 3, "lora"), (used, 512, 2, None), hidden=512) == 2


def test_experience_is_kept_and_read_again(tmp_path: Path) -> None:
    file, found = tmp_path / "measured.json", plain_measurements()
    for number in range(100):
        one = Experience(way="none/float32", hidden_size=64 + number, share=2.0, method="lora")
        found = found.with_experience(one)
    save_measurements(found, file)
    assert load_measurements(found.device, found.versions, file) == found
    assert [each.hidden_size for each in found.experience] == list(range(99, 164))


def test_what_a_backend_sets_itself_is_no_setting_of_the_user() -> None:
    ours = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "1"}
    assert settings_of(ours) == settings_of({}) != settings_of({"ONEDNN_VERBOSE": "1"})


def test_measurements_are_kept_by_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, found = tmp_path / "measured.json", plain_measurements()
    save_measurements(found, file)
    assert load_measurements(found.device, found.versions, file) == found
    monkeypatch.setenv("MKL_DYNAMIC", "63")
    assert load_measurements(found.device, found.versions, file) is None
    other = replace(found, settings=settings_of(), pointwise=1.0)
    save_measurements(other, file)
    assert load_measurements(found.device, found.versions, file) == other
    beside = plain_measurements("mlx")
    save_measurements(replace(beside, settings=settings_of()), file)
    assert load_measurements(found.device, found.versions, file) == other
    monkeypatch.delenv("MKL_DYNAMIC")
    assert load_measurements(found.device, found.versions, file) == found
    assert load_measurements(found.device, "torch 0", file) is None


def test_the_time_of_blocks_that_differ_is_the_sum_of_theirs() -> None:
    whole, choice = _model(model="llama-3.2-1b")
    narrow = replace(whole.shape, blocks=(narrower(whole.shape.blocks[0]),) * whole.shape.layers)
    each = [
        TimeModel(shape, build("prompt", {}), whole.rates)  # gradients go through all of them
        for shape in (whole.shape, narrow, mixed(whole.shape))
    ]
    first, second, both = (time.blocks(choice) for time in each)

    assert second < 0.8 * first
    assert both == pytest.approx((first + second) / 2)
