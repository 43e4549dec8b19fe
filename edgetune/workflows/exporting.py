"""A finished run made into files for other tools, and the proof that they are the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.backend import DEFAULT_ADAPTER, Session
from edgetune.errors import UsageError
from edgetune.exporters import Exported, ExportRequest, export
from edgetune.exporters.check import MergeCheck, compare, require
from edgetune.exporters.folder import folder_bytes, new_folder
from edgetune.exporters.mlx_quantized import Bits, quantize_folder, refuse_unquantizable
from edgetune.exporters.truncate import truncated
from edgetune.model import LocalModel, resolve
from edgetune.owned import ScratchFolder
from edgetune.planning import Plan
from edgetune.settings.spec import Checkpointing
from edgetune.workflows.opening import open_adapted, open_session
from edgetune.workflows.over import Over
from edgetune.workflows.planning import read_rows
from edgetune.workflows.references import new_plan, read_adapted

Logits = NDArray[np.float32]

CHECK_ROWS = 8
"""Rows that a merge is checked on."""

CHECK_TOKENS = 128
"""Tokens of each of these rows: their logits wait on disk until the merged model is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written, and how the merged model compares; None where nothing was merged."""

    exported: Exported
    check: MergeCheck | None


def export_run(
    name: str,
    to: str,
    output: Path,
    *,
    over: Over | None = None,
    dtype: Any = None,
    shard_bytes: int | None = None,
    data: Path | None = None,
    rank: int | None = None,
    quantize: Bits | None = None,
) -> ExportResult:
    """Export a run, or an adapter over a base; merged weights are compared with base and adapter
    on rows of the run's data.

    With ``rank`` an adapter that DyLoRA trained is cut to its first components. With ``quantize``
    the merged model is stored in MLX's bits, after it was compared.

    Raises:
        CheckFailedError: if the merged model is not the trained one; nothing is written then.
        EdgetuneError: if the run, its model, its data or the output cannot be had.
    """
    over = over or Over()
    found = read_adapted(name, over)
    adapter, model = found.adapter, found.model
    if quantize is not None:
        if to != "mlx":
            raise UsageError(f"--quantize is MLX's: it goes with --to mlx, not --to {to}.")
        refuse_unquantizable(model, quantize)
        with new_folder(output, 0) as folder, ScratchFolder(folder.parent) as by:
            whole = by / "model"
            result = export_run(
                name,
                to,
                whole,
                over=over,
                dtype=dtype,
                shard_bytes=shard_bytes,
                data=data,
                rank=rank,
            )
            quantize_folder(whole, folder, quantize)
            nbytes = folder_bytes(folder)
        return ExportResult(exported=Exported(folder=output, nbytes=nbytes), check=result.check)
    if rank is not None:
        adapter = truncated(adapter, rank, (found.plan.choice if found.plan else adapter).method)
    plan = None if to == "peft" else found.plan or new_plan(found, over)
    rows = [] if plan is None else _rows(plan, data)
    checks: list[MergeCheck] = []

    def verify(merged: Path) -> None:
        if plan is not None:
            checks.append(_compared(_unquantized(plan), model, adapter, merged, rows))
            require(checks[-1])

    request = ExportRequest(
        adapter=adapter,
        model=model,
        output=output,
        dtype=dtype,
        shard_bytes=shard_bytes,
        verify=verify,
    )
    exported = export(to, request)
    return ExportResult(exported=exported, check=checks[-1] if checks else None)


def _rows(plan: Plan, data: Path | None) -> list[list[int]]:
    """Return the first rows that the run did not train on, of its own data or another file."""
    path = data or (Path(plan.data.path) if plan.data else None)
    if path is None or not path.exists():
        raise UsageError(
            f"A merge is checked on rows, and {path or 'the data of the run'} is not there. "
            "Give a file of rows: --data FILE."
        )
    _, dataset = read_rows(resolve(plan.model.ref), path, plan.training)
    dataset = dataset.fit(max(plan.choice.context, int(dataset.lengths.max())))
    rows = dataset.validation if len(dataset.validation) else dataset.train
    return [rows[i][0][:CHECK_TOKENS].tolist() for i in range(min(CHECK_ROWS, len(rows)))]


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
