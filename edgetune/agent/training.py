"""One training run: from a plan to a run folder with an adapter in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.adapter_file import load_adapter, save_adapter
from edgetune.agent.planning import Planned, read_rows
from edgetune.backend import Session, load_backend
from edgetune.data import Batches, Dataset, MicroBatch, evaluation_batches
from edgetune.errors import UsageError
from edgetune.files import whole_folder
from edgetune.model import LocalModel, open_model, resolve
from edgetune.plan import Plan, plan_from_json, read_plan_file
from edgetune.record import Recorder, RunFolder, best, differences, latest, load_checkpoint
from edgetune.train import Event, Progress, Schedule, schedule_of, train


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is ready to go: everything is open, nothing is trained by this object yet."""

    plan: Plan
    folder: RunFolder
    session: Session
    dataset: Dataset
    batches: Batches
    schedule: Schedule
    recorder: Recorder
    start: Progress

    def events(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train to the end, recording and passing on what happens.

        Raises:
            StoppedError: if ``stop`` said so; the state is saved then.
            OutOfMemoryError: if nothing smaller is left to try; the state is saved then.
            DivergedError: if the loss is not finite any more; the last good state is saved.
        """
        events = train(
            self.session, self.batches.step, self._evaluation, self.schedule, self.start, stop
        )
        for event in events:
            self.recorder.handle(event)
            yield event
        self._finish()

    def _evaluation(self) -> Iterator[MicroBatch]:
        choice = self.plan.choice
        return evaluation_batches(
            self.dataset.validation, context=choice.context, micro_batch=choice.micro_batch
        )

    def _finish(self) -> None:
        """Write the adapter of the best checkpoint, of the last one without validation rows."""
        source = best(self.folder.checkpoints) or latest(self.folder.checkpoints)
        if source is None:
            raise UsageError(f"{self.folder.path} has no checkpoint.")
        loaded = load_adapter(source, self.plan.shape)
        if not self.folder.adapter.exists():
            with whole_folder(self.folder.adapter) as temporary:
                save_adapter(
                    temporary, loaded.method, self.plan.shape, loaded.tensors,
                    base=self.plan.model.ref,
                )  # fmt: skip
        memory = self.session.memory()
        self.folder.write(
            "memory.json",
            {
                "planned_bytes": self.plan.memory.peak_bytes,
                "peak_bytes": memory.peak_bytes,
                "budget_bytes": self.plan.device.budget_bytes,
            },
        )
        self.folder.note("adapter written", f"from {source.name}", step=self.schedule.steps)


def start_run(planned: Planned, output: Path) -> Run:
    """Open a new run; its folder holds plan, receipt and journal when this returns.

    Raises:
        EdgetuneError: if the model or the backend cannot be opened, or the folder is taken.
    """
    if planned.dataset is None:
        raise UsageError("Training needs rows: --data FILE.")
    batches = _batches(planned.plan, planned.dataset)
    plan = planned.plan
    RunFolder.check(output)
    session = open_session(plan, open_model(plan.model.ref))
    folder = RunFolder.create(output)
    plan.save(folder.plan)
    folder.write("receipt.json", planned.dataset.receipt.with_padding(batches.padding).to_json())
    for reason in plan.reasons:
        folder.note("planned", reason)
    return _run(plan, folder, session, planned.dataset, batches, Progress())


def resume_run(path: Path) -> Run:
    """Open a run where its newest checkpoint left it.

    Raises:
        UsageError: if there is nothing to resume, or the rows or the plan are not the same.
        ModelError: if the checkpoint is damaged.
    """
    folder = RunFolder.open(path)
    plain = read_plan_file(folder.plan)
    plan = plan_from_json(plain, resolve(plain["model"]["ref"]).shape)
    if plan.data is None:
        raise UsageError(f"{folder.plan} does not say which file was trained on.")
    checkpoint = latest(folder.checkpoints)
    if checkpoint is None:
        raise UsageError(f"{path} has no checkpoint to go on from. Train into another --output.")
    _, dataset = read_rows(resolve(plan.model.ref), Path(plan.data.path), plan.training)
    dataset = dataset.fit(plan.choice.context)
    loaded = load_checkpoint(checkpoint, plan)
    session = open_session(plan, open_model(plan.model.ref))
    session.restore(loaded.adapter, loaded.optimizer)
    run = _run(plan, folder, session, dataset, _batches(plan, dataset), loaded.progress)
    _check_same(run, loaded.state)
    dropped = folder.cut_metrics(loaded.progress.step)
    folder.note("resumed", f"from {checkpoint.name}", step=loaded.progress.step, dropped=dropped)
    return run


def _check_same(run: Run, saved: Mapping[str, Any]) -> None:
    changed = differences(saved, run.recorder.facts)
    hard = [name for name in changed if name in {"plan", "data"}]
    if hard:
        raise UsageError(
            f"The {' and the '.join(hard)} changed since the checkpoint was written, so that the "
            "run could not go on as it began. Train anew into another --output."
        )
    if changed:
        run.folder.note("versions changed", "the result may differ in its last bits", all=changed)


def open_session(plan: Plan, model: LocalModel) -> Session:
    """Open a model on the planned backend.

    Raises:
        UsageError: if the backend cannot be used here, with its reason.
    """
    backend = load_backend(plan.device.backend)
    usable = backend.usable()
    if not usable.value:
        raise UsageError(f"The backend {plan.device.backend} cannot be used: {usable.because}.")
    return backend.open(plan, model)


def _batches(plan: Plan, dataset: Dataset) -> Batches:
    choice = plan.choice
    return Batches(
        dataset.train,
        context=choice.context,
        micro_batch=choice.micro_batch,
        accumulation=choice.accumulation,
        packing=plan.training.packing,
        seed=plan.training.seed,
    )


def _run(
    plan: Plan,
    folder: RunFolder,
    session: Session,
    dataset: Dataset,
    batches: Batches,
    start: Progress,
) -> Run:
    return Run(
        plan=plan,
        folder=folder,
        session=session,
        dataset=dataset,
        batches=batches,
        schedule=schedule_of(plan.training, batches.steps_per_epoch),
        recorder=Recorder(folder, session, plan, dataset.fingerprint),
        start=start,
    )
