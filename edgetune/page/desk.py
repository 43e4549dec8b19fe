"""A child of the page that plans, and looks into files of rows: it holds tokenizers and rows.

``python -m edgetune.page.desk``; what it may be asked is in :data:`_WORK`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from edgetune.data import Dataset, Tokenizer
from edgetune.data.view import ShownRow, rows_shown
from edgetune.errors import UsageError
from edgetune.model import ModelSource, resolve
from edgetune.page.answering import Plain, answer_for_ever
from edgetune.planning import plan_from_json, read_plan_file
from edgetune.settings.spec import Training
from edgetune.units import parse_bytes
from edgetune.workflows.continuing import read_beginning
from edgetune.workflows.planning import PlanRequest, plan_for, planned_model, read_rows
from edgetune.workflows.settings import Fixed

LONGEST: Final = 20_000
"""Characters of a row that are shown."""

_opened: dict[tuple[object, ...], tuple[Tokenizer, Dataset]] = {}
"""The file of rows that was looked into last."""


def _plan(request: Plain) -> Iterable[Plain]:
    """Answer with a plan, the time of its run and the receipt of its rows; settings are values by name."""
    fixed = Fixed.named(request["settings"])
    memory = request.get("memory")
    asked = PlanRequest(
        model=request["model"],
        data=Path(request["data"]) if request.get("data") else None,
        device=request.get("device") or "auto",
        memory=parse_bytes(memory) if memory else None,
        choice=fixed.choice,
        training=fixed.training,
        named=fixed.names,
    )
    if source := request.get("from"):
        asked = read_beginning(source, asked.model).request(asked)
    planned = plan_for(asked)
    receipt = planned.dataset.receipt.lines() if planned.dataset else []
    run = planned.plan.time.run
    yield {
        "plan": planned.plan.to_json(), "receipt": receipt, "here": planned.here,
        "seconds": None if run is None else run.total,
    }  # fmt: skip


def _rows(request: Plain) -> Iterable[Plain]:
    """Answer with rows of a run's data, or of a file for a model, and what of them is learned."""
    if "run" in request:
        source, data, training, context = _of_run(Path(request["run"]))
    else:
        source, data = resolve(request["model"]), Path(request["data"])
        training, context = Training(), None
    tokenizer, dataset = _dataset(source, data, training, context)
    first, count = int(request["first"]), int(request["count"])
    total = dataset.receipt.rows_read
    shown = rows_shown(dataset, tokenizer, range(first, min(first + count, total)))
    yield {
        "rows": [_row(row) for row in islice(shown, 10 * count)],
        "total": total,
        "data": str(data),
        "receipt": dataset.receipt.lines(),
    }


def _of_run(folder: Path) -> tuple[ModelSource, Path, Training, int]:
    """Return what a run was trained on, and how."""
    plain = read_plan_file(folder / "plan.yaml")
    source = resolve(planned_model(plain, folder / "plan.yaml"))
    plan = plan_from_json(plain, source.shape)
    if plan.data is None or not Path(plan.data.path).exists():
        where = plan.data.path if plan.data else "its folder"
        raise UsageError(f"The rows of the run are not at {where} any more.")
    return source, Path(plan.data.path), plan.training, plan.choice.context


def _dataset(
    source: ModelSource, data: Path, training: Training, context: int | None
) -> tuple[Tokenizer, Dataset]:
    stamp = data.stat().st_mtime_ns if data.exists() else 0
    key = (source.ref, str(data), stamp, repr(training), context)
    if key not in _opened:
        _opened.clear()
        tokenizer, dataset = read_rows(source, data, training)
        _opened[key] = tokenizer, dataset if context is None else dataset.fit(context)
    return _opened[key]


def _row(row: ShownRow) -> Plain:
    left, pieces = LONGEST, []
    for text, learned in row.pieces:
        pieces.append({"text": text[:left], "learned": learned})
        left -= len(text)
        if left <= 0:
            break
    return {
        "place": row.place, "side": row.side, "because": row.because, "tokens": row.tokens,
        "learned": row.learned, "pieces": pieces, "cut": left < 0,
    }  # fmt: skip


_WORK: Final[dict[str, Callable[[Plain], Iterable[Plain]]]] = {"plan": _plan, "rows": _rows}

if __name__ == "__main__":
    answer_for_ever(lambda request: _WORK[request["do"]](request))
