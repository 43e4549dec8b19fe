"""The pilot on real sessions: what is learned is what it is without one, bit for bit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from rows import write_rows

from conformance.backends import BACKENDS, WAYS
from conformance.loops import assert_same, state_of, step_of, trained
from conformance.sessions import Bench
from edgetune.backend import Tensors
from edgetune.events import Event, Piloted, RunState, SaveDue, Stepped, TrialSaveDue
from edgetune.files import sha256_file
from edgetune.methods import Method
from edgetune.methods.dylora import DyLora
from edgetune.methods.full import Full
from edgetune.methods.lora import Lora
from edgetune.methods.prefix import Prefix
from edgetune.model import LocalModel
from edgetune.pilot import Pilot
from edgetune.schedule import Schedule
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.training import Run, start_run

SCHEDULE = Schedule(steps=4, eval_every=50, save_every=2, warmup=0, learning_rate=1e-2)
PILOT = Pilot(step=step_of(90))
METHODS: list[Method] = [
    Lora(rank=2, dropout=0.2),
    DyLora(rank=2),
    Prefix(prefix_length=3, reparameterize=True, prefix_hidden=8),
    Full(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_a_run_with_a_pilot_is_the_run_without(
    bench: Bench, llama: LocalModel, method: Method
) -> None:
    piloted, plain = bench.open(method, llama), bench.open(method, llama)
    events = trained(piloted, SCHEDULE, pilot=PILOT)
    expected = trained(plain, SCHEDULE)
    assert [type(event) for event in events[:3]] == [SaveDue, TrialSaveDue, Piloted]
    assert events[2].seconds > 0
    assert [e.loss for e in events if isinstance(e, Stepped)] == [
        e.loss for e in expected if isinstance(e, Stepped)
    ]
    assert_same(piloted, plain)


def test_a_resumed_run_with_a_pilot_is_the_run_without(bench: Bench, llama: LocalModel) -> None:
    method = Lora(rank=2, dropout=0.2)
    plain, resumed = bench.open(method, llama), bench.open(method, llama)
    saved: list[tuple[RunState, tuple[Tensors, Tensors]]] = []

    def save(event: Event) -> None:
        if isinstance(event, SaveDue) and event.state.step == 2:
            saved.append((event.state, state_of(plain)))

    trained(plain, SCHEDULE, act=save)
    ((state, tensors),) = saved
    resumed.restore(*tensors)
    trained(resumed, SCHEDULE, start=state, pilot=PILOT)
    assert_same(resumed, plain)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_run_folder_is_the_same_with_and_without(name: str, tmp_path: Path) -> None:
    choice = {"micro_batch": 1, "accumulation": 1, "rank": 2, "targets": ("q_proj",)}
    request = PlanRequest(
        model="tiny", data=write_rows(tmp_path / "rows.jsonl"), device=WAYS[name].device,
        choice=choice, training={"steps": 2, "validation": 0.1},
    )  # fmt: skip
    runs: list[Run] = []
    for pilot in (True, False):
        run = start_run(plan_for(request), tmp_path / f"{pilot}")
        with closing(run):
            events = list(run.events(pilot=pilot))
        assert any(isinstance(event, Piloted) for event in events) is pilot
        runs.append(run)
    folders = [run.folder.path for run in runs]
    files = [
        {str(file.relative_to(folder)): sha256_file(file)
         for part in ("adapter", "checkpoints") for file in sorted((folder / part).rglob("*"))
         if file.is_file()}
        for folder in folders
    ]  # fmt: skip
    assert files[0] == files[1]
