"""A finished run made into files for other tools, and the proof that they are the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.backend import DEFAULT_ADAPTER, Session
from edgetune.data import Tokenizer
from edgetune.errors import CheckFailedError, UsageError
from edgetune.exporters import Exported, ExportRequest, export
from edgetune.exporters.check import MergeCheck, compare, require
from edgetune.exporters.folder import folder_bytes, new_folder
from edgetune.exporters.gguf.client import PACKAGE, client_is_here
from edgetune.exporters.gguf.mixture import DEFAULTS, Quantization
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.ollama import create_in_ollama, require_ollama
from edgetune.exporters.quantized_folder import (
    BITS,
    TARGET,
    Bits,
    quantize_folder,
    refuse_unquantizable,
)
from edgetune.exporters.truncate import truncated
from edgetune.exporters.updates import Merge
from edgetune.model import LocalModel, resolve
from edgetune.owned import ScratchFolder
from edgetune.planning import Plan
from edgetune.settings.spec import Checkpointing, to_plain
from edgetune.workflows.as_trained import read_as_trained
from edgetune.workflows.client_check import (
    ClientCheck,
    Loaded,
    check_in_client,
    expected,
    over_file,
)
from edgetune.workflows.export_notes import note_export
from edgetune.workflows.opening import open_adapted, open_session
from edgetune.workflows.over import Over
from edgetune.workflows.planning import read_rows
from edgetune.workflows.references import Adapted, new_plan, read_adapted

Logits = NDArray[np.float32]

CHECK_ROWS = 8
"""Rows that a merge is checked on."""

CHECK_TOKENS = 128
"""Tokens of each of these rows: their logits wait on disk until the merged model is open."""


GGUF: Final = frozenset({"gguf", "ollama", "lmstudio"})
"""The exports whose weights are one GGUF file: what is checked is what llama.cpp makes of it."""


ROUNDED: Final = frozenset({"q6_k", "q5_k_m", "q4_k_m", "q4_0"})
"""Those of them after which another one is closer to base and adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How a run is exported; what is None is the exporter's to choose."""

    dtype: Any = None
    shard_bytes: int | None = None
    data: Path | None = None
    """Rows to check on; by default the run's own."""
    rank: int | None = None
    """An adapter that DyLoRA trained is cut to its first components."""
    quantize: str | None = None
    adapter: bool = False
    """The adapter's own GGUF file, not the merged model's."""
    over: Over = field(default_factory=Over)
    check: bool = True
    """Whether what is merged is compared with base and adapter."""
    create: bool = False
    """Whether Ollama takes the export into its store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written, and how the merged model compares; None where it was not compared."""

    exported: Exported
    check: MergeCheck | None
    client: ClientCheck | None = None
    """How llama.cpp itself reads and continues the rows of the check; None if it was not asked."""


def export_run(name: str, to: str, output: Path, options: ExportOptions) -> ExportResult:
    """Export a run, or an adapter over a base; merged weights are compared with base and adapter
    on rows of the run's data.

    With ``quantize`` a model for MLX is stored in its bits after it was compared. GGUF files are
    compared in llama.cpp itself, where it is installed.

    Raises:
        CheckFailedError: if the merged model is not the trained one; nothing is written then.
        EdgetuneError: if the run, its model, its data or the output cannot be had.
    """
    _refuse_unread(to, options)
    if options.create:
        require_ollama()
    found = read_adapted(name, options.over)
    try:
        result = _exported(found, to, output, options)
    except CheckFailedError as error:
        note_export(Path(name), str(error), to=to, output=str(output), refused=True)
        raise
    figures = {"nbytes": result.exported.nbytes, "check": to_plain(result.check)}
    note_export(Path(name), f"--to {to}", to=to, output=str(output), **figures)
    notes = (*found.notices, *result.exported.notes)
    if options.create:
        notes = (*notes[:-1], create_in_ollama(result.exported.folder))
    return replace(result, exported=replace(result.exported, notes=notes))


def _refuse_unread(to: str, options: ExportOptions) -> None:
    """Refuse options that this export does not read, before anything is."""
    if options.create and to != "ollama":
        raise UsageError(f"--create is for --to ollama, not --to {to}.")
    if options.adapter and to != "gguf":
        raise UsageError(f"--adapter is for --to gguf, not --to {to}.")
    if options.quantize is not None and to not in {TARGET, *GGUF}:
        raise UsageError(
            f"--quantize is for --to {', '.join((TARGET, *sorted(GGUF)))}, not --to {to}."
        )
    if to == "peft" and (options.data is not None or not options.check):
        flag = "--no-check" if options.data is None else "--data"
        raise UsageError(
            f"{flag} is about the check of merged weights, and --to peft merges none: leave it out."
        )
    if options.data is not None and not options.check:
        raise UsageError("--data names rows to check on, and --no-check checks none. Give one.")


def _exported(found: Adapted, to: str, output: Path, options: ExportOptions) -> ExportResult:
    if options.quantize is not None and to == TARGET:
        return _quantized_folder(found, output, options)
    adapter = found.adapter
    if options.rank is not None:
        trained = (found.plan.choice if found.plan else adapter).method
        adapter = truncated(adapter, options.rank, trained)
    request = ExportRequest(
        adapter=adapter,
        model=found.model,
        output=output,
        dtype=options.dtype,
        shard_bytes=options.shard_bytes,
        quantize=options.quantize,
        alone=options.adapter,
        context=found.plan.choice.context if found.plan else None,
    )
    if not options.check or to == "peft":
        return ExportResult(exported=export(to, request), check=None)
    if to in GGUF and not client_is_here():
        return _not_checked(to, request)
    plan = found.plan or new_plan(found, options.over)
    tokenizer, rows = _rows(plan, options.data, found.label_names)
    if to in GGUF:
        return _checked_in_client(to, request, plan, tokenizer, rows)
    return _checked(to, request, plan, rows)


def _checked(to: str, request: ExportRequest, plan: Plan, rows: list[list[int]]) -> ExportResult:
    """Export a folder and compare it in our own engine."""
    checks: list[MergeCheck] = []

    def verify(merged: Path) -> None:
        model, adapter = request.model, request.adapter
        checks.append(_compared(_unquantized(plan), model, adapter, merged, rows))
        require(checks[-1])

    exported = export(to, replace(request, verify=verify))
    return ExportResult(exported=exported, check=checks[-1] if checks else None)


def _checked_in_client(
    to: str, request: ExportRequest, plan: Plan, tokenizer: Tokenizer, rows: list[list[int]]
) -> ExportResult:
    """Export a GGUF file and compare it in llama.cpp."""
    checks: list[ClientCheck] = []

    def verify(file: Path) -> None:
        model, beginnings = request.model, [tuple(row) for row in rows]
        exact = _unquantized(plan)
        wanted = expected(exact, model, request.adapter, beginnings, tokenizer.end_tokens)
        own = None if request.alone else over_file(exact, file, beginnings)
        with _as_loaded(file, request) as loaded:
            kind = DEFAULTS["gguf"] if request.alone else request.quantize or DEFAULTS[to]
            found = check_in_client(
                loaded, wanted, own, tokenizer, quantization=kind, context=2 * CHECK_TOKENS
            )
        checks.append(found)

    exported = export(to, replace(request, verify=verify))
    check = checks[-1]
    kind = request.quantize or DEFAULTS[to]
    if 2 * check.same_text < check.merge.rows and kind in ROUNDED and not request.alone:
        note = f"{kind} changes most answers of this model: --quantize q8_0 stays closer"
        exported = replace(exported, notes=(note, *exported.notes))
    return ExportResult(exported=exported, check=check.merge, client=check)


@contextmanager
def _as_loaded(file: Path, request: ExportRequest) -> Iterator[Loaded]:
    """Yield what llama.cpp loads: a model's file, or that of its base, made for this, and a LoRA."""
    if not request.alone:
        yield Loaded(file)
        return
    quantization: Quantization = "bf16" if request.model.shape.dtype == "bfloat16" else "f16"
    with ScratchFolder(file.parent) as folder:
        base = folder / "base.gguf"
        model_file(request.model, Merge(changes={}), quantization).write(base)
        yield Loaded(base, file)


def _not_checked(to: str, request: ExportRequest) -> ExportResult:
    exported = export(to, request)
    note = f"Not checked in llama.cpp, because {PACKAGE} is not installed: pip install {PACKAGE}"
    return ExportResult(exported=replace(exported, notes=(*exported.notes, note)), check=None)


def _quantized_folder(found: Adapted, output: Path, options: ExportOptions) -> ExportResult:
    if options.quantize not in BITS:
        raise UsageError(
            f"--to {TARGET} takes --quantize {' or '.join(BITS)}, not {options.quantize}."
        )
    bits = cast("Bits", options.quantize)
    refuse_unquantizable(found.model, bits)
    with new_folder(output, 0) as folder, ScratchFolder(folder.parent) as by:
        whole = by / "model"
        result = _exported(found, TARGET, whole, replace(options, quantize=None))
        quantize_folder(whole, folder, bits)
        nbytes = folder_bytes(folder)
    exported = replace(result.exported, folder=output, nbytes=nbytes)
    return ExportResult(exported=exported, check=result.check)


def _rows(
    plan: Plan, data: Path | None, label_names: tuple[str, ...]
) -> tuple[Tokenizer, list[list[int]]]:
    """Return the first rows of another file, else of those that the run did not train on.

    Labels that are numbers in another file have ``label_names``, if the plan gives them none.
    """
    if data is not None:
        _require_rows(data)
        tokenizer, dataset = read_as_trained(plan, data, label_names)
    else:
        path = _require_rows(Path(plan.data.path) if plan.data else None)
        if plan.training.validation_data is not None:
            _require_rows(Path(plan.training.validation_data))
        tokenizer, dataset = read_rows(resolve(plan.model.ref), path, plan.training)
    dataset = dataset.fit(max(plan.choice.context, int(dataset.lengths.max())))
    rows = dataset.validation if len(dataset.validation) else dataset.train
    first = range(min(CHECK_ROWS, len(rows)))
    return tokenizer, [rows[i][0][:CHECK_TOKENS].tolist() for i in first]


def _require_rows(path: Path | None) -> Path:
    if path is None or not path.exists():
        raise UsageError(
            f"A merge is checked on rows, and {path or 'the data of the run'} is not there. "
            "Give a file of rows: --data FILE."
        )
    return path


def _unquantized(plan: Plan) -> Plan:
    """Return the plan over the weights that were merged into, with nothing kept for training."""
    choice = replace(
        plan.choice,
        quantization="none",
        checkpointing=Checkpointing(layers=plan.model.layers),
        compute_dtype="float32",
    )
    return replace(plan, choice=choice)


def _compared(
    plan: Plan, model: LocalModel, adapter: LoadedAdapter, merged: Path, rows: list[list[int]]
) -> MergeCheck:
    """Compare one model after the other, so that only one is in memory."""
    with _waiting_logits(plan, model, adapter, rows, merged.parent) as (adapted, base):
        candidate = open_session(plan, LocalModel.open(merged))
        with closing(candidate):
            return compare(
                lambda row: adapted[rows.index(list(row))],
                lambda row: candidate.logits(row, adapter=None),
                rows,
                base=lambda row: base[rows.index(list(row))],
            )


@contextmanager
def _waiting_logits(
    plan: Plan, model: LocalModel, adapter: LoadedAdapter, rows: list[list[int]], place: Path
) -> Iterator[tuple[list[Logits], list[Logits]]]:
    """Yield the logits of base and adapter, and of the base alone, kept on disk at ``place``."""
    # beside the output, whose disk has room; the system's own place is often memory
    with ScratchFolder(place) as folder:
        session = open_adapted(plan, model, adapter)
        with closing(session):
            adapted, base = (
                [_on_disk(folder, session, row, name) for row in rows]
                for name in (DEFAULT_ADAPTER, None)
            )
        yield adapted, base


def _on_disk(folder: Path, session: Session, row: Sequence[int], name: str | None) -> Logits:
    file = folder / f"{len(list(folder.glob('*.npy')))}.npy"
    np.save(file, session.logits(row, adapter=name))
    logits: Logits = np.load(file, mmap_mode="r")
    return logits
