"""Recorded runs over the numpy session, in real run folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softmax import CONFIG, HELD_OUT, METHOD, TRAINED, SoftmaxSession

from edgetune.events import Event, RunState
from edgetune.files import sha256_file
from edgetune.loop import train
from edgetune.planning import Plan
from edgetune.runs import (
    Checkpoint,
    Recorder,
    RunFacts,
    RunFolder,
    best,
    checkpoint_name,
    latest,
    load_checkpoint,
    plan_hash,
)
from edgetune.runs.lines import read_lines
from edgetune.runs.rewind import rewind
from edgetune.schedule import schedule_of
from edgetune.settings.spec import values
from edgetune.workflows.planning import PlanRequest, plan_for


def make_plan(model: Path, **training: Any) -> Plan:
    """Return the plan of the numpy session's method for a model folder that is written here."""
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(CONFIG))
    choice = {**values(METHOD), "method": METHOD.kind, "context": 16}
    training = {"steps": 6, "eval_every": 2, "save_every": 2, **training}
    request = PlanRequest(model=str(model), device="cpu", choice=choice, training=training)
    return plan_for(request).plan


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A plan, a session and the folder that they are recorded in."""

    plan: Plan
    folder: RunFolder
    session: SoftmaxSession
    recorder: Recorder

    @classmethod
    def start(cls, plan: Plan, path: Path) -> Recorded:
        """Make a new run folder."""
        return cls.over(plan, RunFolder.create(path, plan, {"rows": 40}))

    @classmethod
    def over(cls, plan: Plan, folder: RunFolder, checkpoint: Checkpoint | None = None) -> Recorded:
        """Record into a folder, going on from a checkpoint."""
        session = SoftmaxSession()
        if checkpoint is not None:
            session.restore(checkpoint.adapter, checkpoint.optimizer)
        recorder = Recorder(folder=folder, session=session, plan=plan, facts=facts_of(plan))
        return cls(plan=plan, folder=folder, session=session, recorder=recorder)

    def events(
        self, start: RunState | None = None, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Event]:
        """Train without recording."""
        schedule = self.recorder.facts.schedule
        return train(
            self.session, TRAINED.step, HELD_OUT.evaluation, schedule, start, stop,
            rewind=self.back_to,
        )  # fmt: skip

    def back_to(self, step: int) -> RunState:
        """Take session and folder back to a checkpoint."""
        checkpoint = load_checkpoint(self.folder.checkpoints / checkpoint_name(step), self.plan)
        self.session.restore(checkpoint.adapter, checkpoint.optimizer)
        rewind(self.folder, checkpoint)
        return checkpoint.state.progress

    def events_recorded(self, start: RunState | None = None) -> Iterator[Event]:
        """Train, recording everything."""
        for event in self.events(start):
            self.recorder.handle(event)
            yield event

    def train(self, start: RunState | None = None) -> Recorded:
        """Train to the end, recording everything."""
        for _ in self.events_recorded(start):
            pass
        return self

    def resumed(self) -> Recorded:
        """Return the run after another process took it from its newest checkpoint to the end."""
        newest = latest(self.folder.checkpoints)
        assert newest is not None
        checkpoint = load_checkpoint(newest, self.plan)
        first = 0 if checkpoint.state.progress.step else 1
        rewind(self.folder, checkpoint, first=first)
        return Recorded.over(self.plan, self.folder, checkpoint).train(checkpoint.state.progress)

    def end(self) -> dict[str, Any]:
        """Return what a run came to: its log but the times, its best and its last checkpoint."""
        lines = read_lines(self.folder.metrics)
        marked, newest = best(self.folder.checkpoints), latest(self.folder.checkpoints)
        assert newest is not None
        return {
            "best": marked and marked.name,
            "metrics": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
            "newest": {file.name: sha256_file(file) for file in sorted(newest.iterdir())},
        }


def facts_of(plan: Plan) -> RunFacts:
    """Return the facts of a run over the rows of this file."""
    return RunFacts(
        plan=plan_hash(plan),
        data="rows",
        model="model",
        seed=plan.training.seed,
        schedule=schedule_of(plan.training, TRAINED.steps_per_epoch()),
        steps_per_epoch=TRAINED.steps_per_epoch(),
    )
