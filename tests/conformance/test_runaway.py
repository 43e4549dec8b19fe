"""A loss that runs away on real sessions: the run goes back exactly, and ends with exit code 8."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from rows import write_rows

from conformance.backends import BACKENDS, WAYS
from conformance.loops import assert_same, state_of, step_of, trained
from conformance.sessions import Bench
from edgetune.backend import Session
from edgetune.errors import DivergedError, ModelError, NoImprovementError, UsageError
from edgetune.events import Event, Rewound, Stepped
from edgetune.guard import REWINDS
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.runs import latest
from edgetune.schedule import Schedule
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.training import start_run

ENDED = r"halved 3 times.*No adapter is promoted"
STEPS, SPOILED, GOOD = 14, 5, 4
SCHEDULE = Schedule(steps=STEPS, eval_every=50, save_every=4, warmup=0, learning_rate=1e-3)


class Spoiler:
    """Spoils an adapter once, after a step."""

    def __init__(self, session: Session) -> None:
        """Wait for the step."""
        self.session, self.done = session, False

    def __call__(self, event: Event) -> None:
        """Act on an event."""
        if isinstance(event, Stepped) and event.step == SPOILED and not self.done:
            self.done, (adapter, optimizer) = True, state_of(self.session)
            self.session.restore({n: value + 1e38 for n, value in adapter.items()}, optimizer)


def test_going_back_is_exact(bench: Bench, llama: LocalModel) -> None:
    method = Lora(rank=2, dropout=0.1)
    session, clean = bench.open(method, llama), bench.open(method, llama)
    events = trained(session, SCHEDULE, act=Spoiler(session))
    (back,) = [event for event in events if isinstance(event, Rewound)]
    assert (back.step, back.to) == (SPOILED, GOOD)
    assert back.learning_rate == SCHEDULE.learning_rate / 2
    for number in range(STEPS):
        data, rate = step_of(number), SCHEDULE.rate(number) * (0.5 if number >= GOOD else 1)
        clean.step(data.micro_batches, loss_tokens=data.loss_tokens, learning_rate=rate)
    assert_same(session, clean)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_rate_beyond_any_use_promotes_nothing(name: str, tmp_path: Path) -> None:
    choice = {"micro_batch": 2, "accumulation": 1, "rank": 2, "compute_dtype": "float32"}
    training = {"learning_rate": 1e4, "steps": 6, "eval_every": 6}
    request = PlanRequest(
        model="tiny", data=write_rows(tmp_path / "rows.jsonl"), device=WAYS[name].device,
        choice=choice, training=training,
    )  # fmt: skip
    run = start_run(plan_for(request), tmp_path / "run")
    events: list[Event] = []
    with closing(run), pytest.raises(DivergedError, match=ENDED) as caught:
        events.extend(run.events())
    assert caught.value.exit_code == 8
    assert len([event for event in events if isinstance(event, Rewound)]) == REWINDS
    assert not run.folder.adapter.exists()
    assert (run.folder.path / "memory.json").exists()


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_no_better_than_the_base_is_not_promoted(name: str, tmp_path: Path) -> None:
    choice = {"micro_batch": 1, "accumulation": 1, "rank": 2, "targets": ("q_proj",),
              "compute_dtype": "float32"}  # fmt: skip
    training = {"learning_rate": 1e-30, "steps": 1}
    request = PlanRequest(
        model="tiny", data=write_rows(tmp_path / "rows.jsonl"), device=WAYS[name].device,
        choice=choice, training=training,
    )  # fmt: skip
    run = start_run(plan_for(request), tmp_path / "run")
    with closing(run), pytest.raises(NoImprovementError, match="no adapter is promoted") as caught:
        list(run.events(pilot=False))
    assert (caught.value.exit_code, caught.value.kind) == (8, "no-improvement")
    assert not run.folder.adapter.exists()
    assert latest(run.folder.checkpoints).name == "step-000001"
    with pytest.raises(UsageError, match="none of its checkpoints was better than the base"):
        run.folder.finished_adapter()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_checkpoint_damaged_while_the_run_goes_on_is_not_gone_back_to(
    name: str, tmp_path: Path
) -> None:
    training = {"steps": 3, "save_every": 1, "eval_every": 3, "learning_rate": 1e-4, "keep": 0}
    request = PlanRequest(
        model="tiny", data=write_rows(tmp_path / "rows.jsonl"), device=WAYS[name].device,
        choice={"micro_batch": 1, "accumulation": 1, "rank": 2}, training=training,
    )  # fmt: skip
    run = start_run(plan_for(request), tmp_path / "run")
    with closing(run):
        for event in run.events(pilot=False):
            if isinstance(event, Stepped) and event.step == 3:
                break
        (run.folder.checkpoints / "step-000002" / "optimizer.safetensors").write_bytes(b"")
        assert run._back_to(2).step == 1
        assert "step-000002 is not whole" in run.notices[0]
        assert latest(run.folder.checkpoints).name == "step-000001"
        for path in run.folder.checkpoints.glob("step-*/state.json"):
            path.unlink()
        with pytest.raises(ModelError, match=r"No checkpoint of the run .* is whole"):
            run._back_to(2)
