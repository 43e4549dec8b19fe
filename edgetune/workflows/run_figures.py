"""What runs came to, side by side: quality, memory, time, size, forgetting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetune.cautions import row_cautions
from edgetune.report import Report
from edgetune.report.contents import figure, items, value
from edgetune.runs.folder import RunFolder
from edgetune.verdict import FOREIGN

if TYPE_CHECKING:
    from edgetune.workflows.scoring import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What one run came to; None is what it does not tell.

    ``loss`` is that of its kept checkpoint on its own validation rows, the perplexities are those
    on neutral text, before and after. ``seconds`` are those of all steps. ``scores`` are on rows
    that were given beside. ``problem`` says why there is no adapter.
    """

    name: str
    method: str
    steps: int
    base_loss: float | None = None
    loss: float | None = None
    planned_bytes: float | None = None
    peak_bytes: float | None = None
    seconds: float = 0.0
    parameters: float | None = None
    adapter_bytes: int | None = None
    base_perplexity: float | None = None
    perplexity: float | None = None
    scores: Scores | None = None
    problem: str = ""

    @property
    def forgets(self) -> float | None:
        """By which share the perplexity on neutral text rose; negative: it fell.

        None if it was not measured, or the base does not predict such text in the first place.
        """
        return forgotten(self.base_perplexity, self.perplexity)


def forgotten(before: float | None, after: float | None) -> float | None:
    """Return by which share a perplexity on neutral text rose, None if that says nothing."""
    if before is None or after is None or not 0 < before <= FOREIGN:
        return None
    return after / before - 1


def forgets(report: Report) -> float | None:
    """Return by which share a run's perplexity on neutral text rose, None if that is not known."""
    neutral = value(report.verdict, "neutral")
    return forgotten(figure(neutral, "base_perplexity"), figure(neutral, "perplexity"))


def adapter_bytes(report: Report) -> int | None:
    """Return the size of the tensors of a run's adapter, None if it has none."""
    try:
        sizes = [one.stat().st_size for one in RunFolder(report.path).adapter.glob("*.safetensors")]
    except OSError:  # taken away meanwhile
        return None
    return sum(sizes) if sizes else None


def figures_of(name: str, report: Report) -> RunFigures:
    """Return what the folder of a run tells."""
    folder = RunFolder.open(report.path)
    kept = folder.kept()
    base, best = (None if one is None else one.loss for one in (report.base, report.best))
    peaks = report.steps.peak
    return RunFigures(
        name=name,
        method=str(value(report.plan, "choice", "method") or ""),
        steps=report.step,
        base_loss=base,
        loss=best if kept is None or kept.loss is None else kept.loss,
        planned_bytes=figure(report.plan, "memory", "peak_bytes"),
        peak_bytes=float(peaks.max()) if len(peaks) else figure(report.memory, "peak_bytes"),
        seconds=float(report.steps.seconds.sum()),
        parameters=figure(report.plan, "choice", "trainable_parameters"),
        adapter_bytes=adapter_bytes(report),
        base_perplexity=figure(report.verdict, "neutral", "base_perplexity"),
        perplexity=figure(report.verdict, "neutral", "perplexity"),
        problem=_problem(report),
    )


def _problem(report: Report) -> str:
    """Return why a run has no adapter, nothing if it has one."""
    status = report.status
    return "" if status.kind == "finished" else status.because or f"The run is {status.kind}."


def unlike(reports: Sequence[Report]) -> Iterator[str]:
    """Yield why the losses of runs cannot be compared as they are, a sentence each."""
    models = {str(value(one.plan, "model", "ref")) for one in reports}
    if len(models) > 1:
        yield (
            "The runs are over different models: losses a token say nothing between vocabularies, "
            "answers do."
        )
    if len({_rows(one.receipt) for one in reports}) > 1:
        yield (
            "The runs have other rows or another split: their validation losses are not on the "
            "same rows. --held-out FILE scores all of them on one file."
        )


def about_rows(reports: Sequence[Report]) -> Iterator[str]:
    """Yield what to know of the rows of runs before their figures are trusted, once for the same."""
    said: dict[str, None] = {}
    for report in reports:
        trained, validation = (
            figure(report.receipt, name) for name in ("rows_trained", "rows_validation")
        )
        if trained is not None and validation is not None:
            said |= dict.fromkeys(row_cautions(int(trained), int(validation)))
        if dropped := items(report.receipt, "dropped"):
            said[f"{len(dropped):,} rows were dropped; receipt.json in the run says why."] = None
    yield from said


def _rows(receipt: Mapping[str, Any]) -> str:
    """Return what decides which rows are trained and which are for validation."""
    files = receipt.get("files")
    hashes = [value(file, "sha256") for file in files] if isinstance(files, list) else []
    split = [receipt.get(name) for name in ("seed", "rows_trained", "rows_validation", "loss_on")]
    return repr((hashes, split))
