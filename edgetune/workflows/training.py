"""One training run: from a plan to a run folder with an adapter in it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgetune.backend import Session
from edgetune.errors import (
    DiskError,
    DivergedError,
    EdgetuneError,
    ModelError,
    NoImprovementError,
    OutOfMemoryError,
    StoppedError,
    UsageError,
)
from edgetune.events import (
    Evaluated,
    Event,
    Piloted,
    Recovered,
    RunState,
    SaveDue,
    Stepped,
)
from edgetune.loop import train
from edgetune.model import open_model
from edgetune.planning import Plan
from edgetune.report import ReportWriter
from edgetune.runs import (
    AS_USUAL,
    Recorder,
    RunFolder,
    RunOptions,
    best_whole,
    checkpoint_step,
    latest,
    newest_whole,
    none_whole,
    promote,
    recording,
)
from edgetune.runs.rewind import rewind
from edgetune.schedule import Schedule
from edgetune.together import together
from edgetune.workflows.after import AFTER, After
from edgetune.workflows.against_plan import AgainstPlan
from edgetune.workflows.continuing import Beginning, begin, keep_start
from edgetune.workflows.experience import NEAR, Timed, learn, shapes_of
from edgetune.workflows.job import Job
from edgetune.workflows.judging import VERDICT, Judge
from edgetune.workflows.opening import open_session
from edgetune.workflows.planning import PreparedPlan
from edgetune.workflows.ranks import tell_plan, tell_settings, tell_state
from edgetune.workflows.searching import RateSearch, is_pending
from edgetune.workflows.sharing import begun, meet, sharing_of
from edgetune.workflows.throttle import yield_to_machine
from edgetune.world import ALONE, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that is ready to go: everything is open, nothing is trained by this object yet.

    ``held`` gives back the session and the lock of the folder; ``notices`` is for the user to read.
    """

    job: Job
    folder: RunFolder
    session: Session
    start: RunState
    held: ExitStack
    world: World = ALONE
    parts: int = 1
    """The least number of parts of a step."""
    notices: list[str] = field(default_factory=list)
    recovered: Recovered | None = None
    """What became of the process before this one, if it died."""

    @property
    def schedule(self) -> Schedule:
        """When what happens."""
        return self.job.facts.schedule

    def events(
        self,
        stop: Callable[[], bool] = lambda: False,
        *,
        pause: bool = False,
        strict: bool = False,
        pilot: bool = True,
        after: After = AFTER,
    ) -> Iterator[Event]:
        """Train to the end, recording and passing on what happens.

        With ``pause`` steps wait while the machine is on battery or short of memory; ``strict``
        ends the run where it would go on with fewer rows at once or a lower rate. A ``pilot``
        comes first: what a step, an evaluation and a save take is measured, and undone. ``after``
        says what follows the last step: the verdict, and rows that are answered. Where the plan asks
        for a search, learning rates are raced before all of it.

        Raises:
            StoppedError: if ``stop`` said so, or the disk failed after a checkpoint was saved.
            DiskError: if there is no checkpoint yet: nothing is lost.
            OutOfMemoryError: if nothing smaller is left to try; the state is saved then.
            DivergedError: if the loss ran away too often; ``adapter/`` is the best checkpoint, if
                one is better than the base.
            NoImprovementError: if no checkpoint is better than the base; they are kept.
        """
        run, loaded = self, self.session.memory().peak_bytes
        if is_pending(self.folder, self.job.plan, self.start):
            if self.world.size > 1:
                raise UsageError(
                    "Learning rates are still to be raced in this run, which one process does. "
                    f"Continue with: {self.folder.resume_command}"
                )
            run = yield from self._searched(stop, pause=pause, strict=strict)
        yield from run._trained(stop, loaded, pause=pause, strict=strict, pilot=pilot, after=after)

    def _searched(
        self, stop: Callable[[], bool], *, pause: bool, strict: bool
    ) -> Generator[Event, None, Run]:
        """Race learning rates, and return the run with the winner's."""
        search = RateSearch(
            self.job, self.folder, self.session, stop, pause, strict, self.start.rows
        )
        try:
            with recording(self.folder):
                job = yield from search.search()
        except (StoppedError, OutOfMemoryError, DiskError) as error:
            self._note_end(error)
            ReportWriter(self.folder).write(running=False)
            raise
        return replace(self, job=job, start=replace(self.start, rows=search.rows))

    def _trained(
        self,
        stop: Callable[[], bool],
        loaded: int,
        *,
        pause: bool,
        strict: bool,
        pilot: bool,
        after: After,
    ) -> Iterator[Event]:
        """Train to the end; ``loaded`` is the peak of the process when the model was loaded."""
        job, session, world = self.job, self.session, self.world
        tell_settings(world, strict=strict, pilot=pilot)
        ranks = meet(world, job.plan)
        sharing = sharing_of(self.parts, ranks, pilot, job.deal)
        tell_state(world, session, self.start)
        start = begun(self.start, sharing)
        recorder = Recorder(
            folder=self.folder, session=session, plan=job.plan, facts=job.facts,
            ranks=[rank.to_json() for rank in ranks],
        )  # fmt: skip
        steps = train(
            session, job.batches.step, job.evaluation, self.schedule, start, stop,
            rewind=self._back_to, strict=strict, pilot=job.pilot() if pilot else None, world=world,
            sharing=sharing,
        )  # fmt: skip
        events = yield_to_machine(steps, pause=pause, stop=stop)
        now = start
        watched = AgainstPlan(
            job.plan, self.folder, lambda: session.memory().peak_bytes, loaded_bytes=loaded
        )
        report = ReportWriter(self.folder)
        timed = Timed(job.plan, job.batches)
        if self.recovered is not None:
            recorder.handle(self.recovered)
        try:
            for event in watched.watch(events):
                recorder.handle(event)
                if isinstance(event, SaveDue):
                    now = event.state
                elif isinstance(event, Evaluated) and event.step == 0:
                    now = replace(now, base_loss=event.loss)
                elif isinstance(event, Piloted) and event.seconds and world.size == 1:
                    self._learn(event)
                elif isinstance(event, Stepped):
                    timed.saw(event)
                report.follow(event)
                yield event
            with recording(self.folder):
                yield from self._finish(
                    now, watched, Judge(job, self.folder, session, now, stop), after
                )
            if world.size == 1:
                timed.learn()
        except (StoppedError, OutOfMemoryError, DivergedError, DiskError) as error:
            told = self._stopped(error) if isinstance(error, DiskError) else error
            self._note_end(told)
            if isinstance(error, DivergedError) and not strict:
                with recording(self.folder):
                    raise self._given_up(error, now, watched) from None
            if told is not error:
                raise told from error
            raise
        finally:
            report.write(running=False)
            if report.failed:
                self.notices.append(report.failed)

    def close(self) -> None:
        """Give back the device's memory and let others into the folder."""
        self.held.close()

    def _back_to(self, step: int) -> RunState:
        """Take session and folder back to a checkpoint and return its state.

        If it was damaged meanwhile, the one before it is taken.

        Raises:
            ModelError: if none up to it is whole.
        """
        checkpoint, refused = newest_whole(self.folder.checkpoints, self.job.plan, step)
        if checkpoint is None:
            raise none_whole(self.folder.path, refused)
        self.session.restore(checkpoint.adapter, checkpoint.optimizer)
        rewind(self.folder, checkpoint, refused)
        self.notices.extend(item.notice for item in refused)
        tell_state(self.world, self.session, checkpoint.state.progress)
        return checkpoint.state.progress

    def _learn(self, pilot: Piloted) -> None:
        """Hold what is kept of this machine's speed against a pilot that took its step whole."""
        shapes = shapes_of(self.job.pilot().step)
        if pilot.rows < max(rows for rows, _ in shapes):
            return
        if (kept := learn(self.job.plan, [(shapes, pilot.seconds)], NEAR)) is not None:
            because = "steps here take another time than this machine's rates predict"
            self.folder.note("rates corrected", because, share=kept.share)

    def _given_up(self, error: DivergedError, now: RunState, watched: AgainstPlan) -> DivergedError:
        """Promote the best checkpoint of a run that ran away, if there is one; say which."""
        self._record_memory(watched)
        source = None
        if now.base_loss is not None:
            with suppress(ModelError):
                source, _ = best_whole(self.folder, now)
        if source is None:
            return DivergedError(f"{error} No adapter is promoted.")
        self._write_adapter(source)
        place = self.folder.adapter
        return DivergedError(f"{error} The adapter in {place} is that of {source.name}, the best.")

    def _note_end(self, error: EdgetuneError) -> None:
        """Write down why the run ends before its last step, if anything can be written."""
        with suppress(OSError):
            ended = {"kind": error.kind, "exit_code": error.exit_code}
            self.folder.note("ended early", str(error), **ended)

    def _stopped(self, error: DiskError) -> EdgetuneError:
        """Return what a disk that failed comes to: a run that is stopped and saved, or nothing."""
        with suppress(OSError):
            if newest := latest(self.folder.checkpoints):
                return StoppedError(f"Stopped: {error} The checkpoint {newest.name} is whole.")
        return error

    def _finish(
        self, now: RunState, watched: AgainstPlan, judge: Judge, after: After
    ) -> Iterator[Event]:
        """Write what was measured, promote an adapter and judge it; a finished run stays as it is,
        but for a verdict that it lacks because its process was killed.

        Raises:
            NoImprovementError: if no checkpoint is better than the base; it is judged before.
        """
        over = self.schedule.is_over(self.start.step, self.start.patience)
        fresh = not over or not self.folder.adapter.exists()
        if fresh:
            self._record_memory(watched)
        worse: NoImprovementError | None = None
        source = None
        try:
            source = self._promote(now)
        except NoImprovementError as error:
            worse = error
        if fresh or (after.verdict and not (self.folder.path / VERDICT).exists()):
            yield from judge.judge(after, source)
            watched.record(self.session.memory().peak_bytes)
        if worse is not None:
            raise worse

    def _record_memory(self, watched: AgainstPlan) -> None:
        memory = watched.record(self.session.memory().peak_bytes)
        self.folder.note("memory measured", "to compare with the plan", **memory)

    def _promote(self, now: RunState) -> Path:
        """Write ``adapter/`` and return what it is: the best checkpoint, or the last one if
        nothing was evaluated.

        Raises:
            NoImprovementError: if no checkpoint is better than the base.
            StoppedError: if something else is at its place.
        """
        folder = self.folder
        source, refused = best_whole(folder, now)
        for damaged in refused:
            folder.note("checkpoint refused", damaged.because)
            self.notices.append(f"{damaged.because} Another one is handed over.")
        if source is None:
            folder.note("no adapter", "no checkpoint is better than the base", step=now.step)
            raise NoImprovementError(
                f"No evaluation was better than the base model's validation loss of "
                f"{now.base_loss:.4f}, so no adapter is promoted. The checkpoints are kept in "
                f"{folder.checkpoints}. A lower --learning-rate or other rows usually help."
            )
        self._write_adapter(source)
        return source

    def _write_adapter(self, source: Path) -> None:
        if promote(self.folder, source):
            step, because = checkpoint_step(source), f"from {source.name}"
            losses = {line["step"]: line["loss"] for line in self.folder.evaluations()}
            self.folder.note("adapter written", because, step=step, loss=losses.get(step))


def start_run(
    planned: PreparedPlan,
    output: Path,
    beginning: Beginning | None = None,
    world: World = ALONE,
    options: RunOptions = AS_USUAL,
) -> Run:
    """Open a new run; its folder holds plan, receipt, options and journal when this returns.

    With a ``beginning`` it goes on from that adapter, of which the folder keeps a copy. As rank 0
    of a ``world`` it takes the others along, and leaves the world when it is closed.

    Raises:
        EdgetuneError: if the model or the backend cannot be opened, or the folder is taken.
    """
    if planned.dataset is None:
        raise UsageError("Training needs rows: --data FILE.")
    RunFolder.check(output)
    plan, model = planned.plan, open_model(planned.plan.model.ref)
    job, parts = Job.of(plan, planned.dataset, model, world), parts_of_run(plan, world)
    with ExitStack() as stack:
        stack.callback(world.close)
        tell_plan(world, plan, job.facts, parts)
        with together(world):
            session = open_session(plan, model, world)
        stack.callback(session.close)
        job = job.opened(session)

        def fill(made: RunFolder) -> None:
            options.keep(made.path)
            keep_start(beginning, plan, made)

        folder = RunFolder.create(output, plan, job.receipt(), fill)
        stack.enter_context(folder.locked())
        begin(session, folder, plan)
        with recording(folder):
            if beginning is not None:
                folder.note("goes on from an adapter", f"--from {beginning.name}")
            for reason in plan.reasons:
                folder.note("planned", reason)
        held = stack.pop_all()
    return Run(
        job=job, folder=folder, session=session, start=RunState(), held=held, world=world,
        parts=parts,
    )  # fmt: skip


def parts_of_run(plan: Plan, world: World) -> int:
    """Return in how many parts a new run adds up the gradients of a step."""
    return max(plan.training.gradient_parts or 1, world.size)
