"""What Python code calls: plan, train, use and export, as the command line does it.

Everything here is also at the top: ``edgetune.train(...)``. Settings are keywords named as the
flags of ``edgetune train``; sizes are bytes or text such as ``"6GB"``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgetune.backend import GenerateOptions
from edgetune.errors import UsageError
from edgetune.escapes import short
from edgetune.events import Event
from edgetune.owned import ScratchFolder
from edgetune.planning import Plan
from edgetune.runs import RunFolder, RunOptions
from edgetune.units import parse_bytes
from edgetune.workflows.measured import refuse_elsewhere
from edgetune.workflows.over import Over
from edgetune.workflows.planning import PlanRequest, PreparedPlan, plan_for
from edgetune.workflows.settings import Fixed, Setting

if TYPE_CHECKING:
    from edgetune.workflows.exporting import ExportResult
    from edgetune.workflows.opened import Opened
    from edgetune.workflows.scoring import ScoredRow, Scores

PathLike = str | os.PathLike[str]
Rows = PathLike | Iterable[Mapping[str, Any]]
"""A file or a folder of files, or the rows themselves in a format of docs/data.md."""

Messages = str | Sequence[Mapping[str, Any]]
"""A prompt: the user's words, or a chat."""

ROWS = "rows.jsonl"
"""Where rows that were given as objects lie in the run folder."""


def plan(
    model: PathLike,
    *,
    data: Rows | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    measure: bool = False,
    **settings: Setting,
) -> Plan:
    """Return what would run, in how much memory and time, and why; nothing is loaded.

    ``device`` is ``auto``, ``cpu``, ``cuda``, ``mlx`` or a profile of a machine that need not be
    here. ``memory`` is a limit in bytes. With ``measure`` this machine is timed first, if that was
    not done yet.

    >>> import edgetune
    >>> found = edgetune.plan("llama-7b", device="rtx-4060-laptop", context=512)
    >>> found.fits, found.choice.quantization
    (True, 'int8')

    Raises:
        NothingFitsError: if nothing fits, with the nearest thing that would.
        EdgetuneError: if the model, the data or the device cannot be had.
    """
    if measure:
        refuse_elsewhere(device)
    with ScratchFolder() as scratch:
        request = _request(model, data, device, memory, settings, scratch, measure=measure)
        return plan_for(request).plan


def train(
    model: PathLike,
    *,
    data: Rows,
    output: PathLike,
    device: str = "auto",
    memory: int | str | None = None,
    on_event: Callable[[Event], object] | None = None,
    stop: Callable[[], bool] = lambda: False,
    strict: bool = False,
    verdict: bool = True,
    samples: int = 3,
    **settings: Setting,
) -> LoadedRun:
    """Train in this process and return the finished run.

    ``output`` is a new folder. ``on_event`` is told of everything that happens
    (:mod:`edgetune.events`); when ``stop`` returns true the run is saved after the step. ``strict``
    ends the run where it would go on with fewer rows at once or a lower learning rate. ``verdict``
    measures at the end what was learned and forgotten, and ``samples`` held-out rows are answered.

    >>> import edgetune, tempfile
    >>> rows = [{"prompt": f"{n} and one is", "completion": str(n + 1)} for n in range(32)]
    >>> folder = tempfile.TemporaryDirectory()
    >>> run = edgetune.train("tiny", data=rows, output=folder.name + "/run", steps=4, rank=2)
    >>> run.adapter.name
    'adapter'
    >>> folder.cleanup()

    Raises:
        StoppedError: if ``stop`` said so; ``resume`` goes on.
        OutOfMemoryError: if nothing smaller is left to try; the state is saved then.
        EdgetuneError: as ``edgetune train`` says.
    """
    from edgetune.workflows.after import After
    from edgetune.workflows.method_search import chosen, keep
    from edgetune.workflows.training import start_run

    folder = Path(output)
    RunFolder.check(folder)
    with ScratchFolder() as scratch:
        request = _request(model, data, device, memory, settings, scratch, measure=True, run=True)
        after = After(verdict=verdict, samples=samples)
        planned = plan_for(replace(request, after=after))
        if not planned.here:
            raise UsageError(f"{device} is another machine's profile, to plan for.")
        own = request.data is not None and request.data.parent == scratch
        planned, races = chosen(planned, folder, lambda _: None, stop, strict=strict)
        options = RunOptions(strict=strict, verdict=verdict, samples=samples)
        ready = _kept_at(planned, folder) if own else planned
        with closing(start_run(ready, folder, options=options)) as run:
            keep(races, run.folder)
            if own and request.data is not None:
                (folder / ROWS).write_bytes(request.data.read_bytes())
            _follow(run.events(stop, strict=strict, after=after), on_event)
    return load_run(folder)


def resume(
    folder: PathLike,
    *,
    data: PathLike | None = None,
    memory: int | str | None = None,
    on_event: Callable[[Event], object] | None = None,
    stop: Callable[[], bool] = lambda: False,
    strict: bool | None = None,
    verdict: bool | None = None,
    samples: int | None = None,
) -> LoadedRun:
    """Go on with a run where its newest checkpoint left it, exactly as it would have.

    ``data`` says where its rows lie now, if they moved. ``strict``, ``verdict`` and ``samples`` are
    those that it began with, where they are None.

    Raises:
        UsageError: if there is nothing to resume, or rows, plan or model are not the same.
        EdgetuneError: as :func:`train`.
    """
    from edgetune.workflows.after import After
    from edgetune.workflows.resuming import resume_run

    rows = None if data is None else Path(data)
    given = {"strict": strict, "verdict": verdict, "samples": samples}
    anew: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options = replace(RunOptions.of(Path(folder)), **anew)
    with closing(resume_run(Path(folder), rows, size_of(memory), options=options)) as run:
        after = After(verdict=options.verdict, samples=options.samples)
        _follow(run.events(stop, strict=options.strict, after=after), on_event)
    return load_run(folder)


def load_run(
    ref: PathLike,
    *,
    model: PathLike | None = None,
    device: str = "auto",
    memory: int | str | None = None,
) -> LoadedRun:
    """Return a finished run, an adapter or a model, to be used.

    ``model``, ``device`` and ``memory`` are for adapters that do not belong to a run, and for
    models. Nothing is loaded before it is asked for.

    >>> import edgetune
    >>> with edgetune.load_run("tiny") as model:
    ...     text = model.generate("Hello!", max_tokens=4)
    >>> len(text) > 0
    True
    """
    base = None if model is None else os.fspath(model)
    return LoadedRun(os.fspath(ref), Over(model=base, device=device, memory=size_of(memory)))


def export(
    ref: PathLike,
    output: PathLike,
    *,
    to: str = "peft",
    model: PathLike | None = None,
    **options: Any,
) -> ExportResult:
    """Write a run or an adapter as files that other tools load; what is merged is checked.

    ``to`` is one of the formats of ``edgetune export``, ``options`` are those of
    :class:`edgetune.workflows.exporting.ExportOptions`.

    Raises:
        CheckFailedError: if the merged model is not the trained one; nothing is written then.
        EdgetuneError: if the run, its model, its data or the output cannot be had.
    """
    with load_run(ref, model=model) as run:
        return run.export(output, to=to, **options)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well rows are predicted, with the adapter and by the base model alone.

    ``examples`` are the rows that were to be shown, each with both answers and losses.
    """

    tuned: Scores
    base: Scores
    examples: tuple[ScoredRow, ...] = ()


class LoadedRun:
    """A run, an adapter or a model, opened when it is first used; ``with`` gives memory back."""

    def __init__(self, ref: str, over: Over) -> None:
        """Name what is to be used; nothing is opened yet."""
        self.ref = ref
        self._over = over
        self._opened: Opened | None = None

    @property
    def folder(self) -> Path:
        """The folder of the run or the adapter."""
        return Path(self.ref)

    @property
    def adapter(self) -> Path:
        """The folder of the run's adapter."""
        return RunFolder.open(self.folder).adapter

    def generate(
        self, prompt: Messages, *, system: str | None = None, base: bool = False, **options: Any
    ) -> str:
        """Return the answer to a prompt.

        ``base`` leaves the adapter out; ``options`` are those of
        :class:`edgetune.backend.GenerateOptions`, such as ``max_tokens`` and ``temperature``.
        """
        return "".join(self.stream(prompt, system=system, base=base, **options))

    def stream(
        self, prompt: Messages, *, system: str | None = None, base: bool = False, **options: Any
    ) -> Iterator[str]:
        """Yield the answer piece by piece."""
        opened = self._open()
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        before = [] if system is None else [{"role": "system", "content": system}]
        wanted = GenerateOptions(**{"end_tokens": opened.tokenizer.end_tokens, **options})
        yield from (opened.base() if base else opened).generate([*before, *chat], wanted)

    def evaluate(self, data: Rows, *, exact_match: bool = False, show: int = 0) -> Evaluation:
        """Return loss, perplexity and accuracy on rows, beside those of the base model.

        With ``exact_match`` both answer, and are compared with the rows: to the letter, by their
        words and as JSON. Rows of text and label are also scored by the probability of every label. The first ``show`` rows are returned one by one, with both answers.
        """
        from edgetune.workflows.scoring import dataset_of, labels_of, score_each

        opened = self._open()
        with ScratchFolder() as scratch:
            dataset = dataset_of(opened, rows_file(data, scratch))
        labels, _ = labels_of((opened,), dataset)
        each = {"tuned": opened, "base": opened.base()}
        scores, examples = score_each(
            each, dataset.train, labels, exact_match=exact_match, show=show
        )
        return Evaluation(**scores, examples=tuple(examples))

    def export(self, output: PathLike, *, to: str = "peft", **options: Any) -> ExportResult:
        """Write files that other tools load; see :func:`export`."""
        from edgetune.workflows.exporting import ExportOptions, export_run

        self.close()  # the check needs the memory
        wanted = ExportOptions(**{"over": self._over, **options})
        return export_run(self.ref, to, Path(output), wanted)

    def close(self) -> None:
        """Give the memory back; what is asked afterwards opens it again."""
        if self._opened is not None:
            self._opened.session.close()
            self._opened = None

    def __enter__(self) -> LoadedRun:
        """Return this."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the memory back."""
        self.close()

    def __repr__(self) -> str:
        """Return how it was named."""
        return f"LoadedRun({self.ref!r})"

    def _open(self) -> Opened:
        from edgetune.workflows.references import open_references

        if self._opened is None:
            (self._opened,) = open_references((self.ref,), self._over)
        return self._opened


def _request(
    model: PathLike,
    data: Rows | None,
    device: str,
    memory: int | str | None,
    settings: Mapping[str, Setting],
    scratch: Path,
    *,
    measure: bool,
    run: bool = False,
) -> PlanRequest:
    fixed = Fixed.named(settings)
    return PlanRequest(
        model=os.fspath(model),
        data=None if data is None else rows_file(data, scratch),
        device=device,
        memory=size_of(memory),
        choice=fixed.choice,
        training=fixed.training,
        named=fixed.names,
        measure=measure,
        run=run,
    )


def rows_file(data: Rows, scratch: Path) -> Path:
    """Return the file of some rows; objects are written into ``scratch``."""
    if isinstance(data, str | os.PathLike):
        return Path(data)
    file = scratch / ROWS
    with file.open("w", encoding="utf-8") as lines:
        for number, row in enumerate(data, 1):
            if not isinstance(row, Mapping):
                raise UsageError(f"Row {number} must be a table of fields; found {short(row)}.")
            try:
                lines.write(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n")
            except (TypeError, ValueError) as error:
                raise UsageError(f"Row {number} cannot be written as JSON: {error}.") from None
    return file


def _kept_at(planned: PreparedPlan, folder: Path) -> PreparedPlan:
    """Return a plan whose rows will lie in the run folder."""
    facts = planned.plan.data
    assert facts is not None
    path = str((folder / ROWS).expanduser().absolute())
    return replace(planned, plan=replace(planned.plan, data=replace(facts, path=path)))


def size_of(size: int | str | None) -> int | None:
    """Return bytes that may be given as text such as ``"6GB"``."""
    return parse_bytes(size) if isinstance(size, str) else size


def _follow(events: Iterable[Event], on_event: Callable[[Event], object] | None) -> None:
    for event in events:
        if on_event is not None:
            on_event(event)
