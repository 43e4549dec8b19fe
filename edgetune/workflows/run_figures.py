"""What runs came to, side by side: quality, memory, time, size, forgetting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune.adapters import WEIGHTS
from edgetune.report import Report
from edgetune.report.contents import figure, value
from edgetune.runs import RunFolder
from edgetune.verdict import FOREIGN
from edgetune.workflows.over import Over
from edgetune.workflows.references import open_references
from edgetune.workflows.scoring import Scores, dataset_of, labels_of, score_each


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
        if self.perplexity is None or not 0 < (self.base_perplexity or 0) <= FOREIGN:
            return None
        assert self.base_perplexity is not None
        return self.perplexity / self.base_perplexity - 1


def figures_of(name: str, report: Report) -> RunFigures:
    """Return what the folder of a run tells."""
    folder = RunFolder.open(report.path)
    kept, weights = folder.kept(), folder.adapter / WEIGHTS
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
        adapter_bytes=weights.stat().st_size if weights.is_file() else None,
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


def scored(
    figures: Sequence[RunFigures], paths: Mapping[str, Path], data: Path, *, exact_match: bool
) -> tuple[dict[str, Scores], list[RunFigures], list[str]]:
    """Return the scores of the bases by model, the figures with scores, and what to say.

    Runs are opened one after the other: their bases and plans may differ.
    """
    bases: dict[str, Scores] = {}
    notices: dict[str, None] = {}
    found = []
    for one in figures:
        if one.adapter_bytes is None:
            found.append(one)
            continue
        (opened,) = open_references((str(paths[one.name]),), Over())
        try:
            dataset = dataset_of(opened, data)
            labels, said = labels_of((opened,), dataset)
            notices |= dict.fromkeys(said)
            base = opened.plan.model.ref
            each = {"tuned": opened} | ({} if base in bases else {"base": opened.base()})
            scores, _ = score_each(each, dataset.train, labels, exact_match=exact_match, show=0)
        finally:
            opened.session.close()
        bases |= {base: scores["base"]} if "base" in scores else {}
        found.append(replace(one, scores=scores["tuned"]))
    return bases, found, list(notices)


def _rows(receipt: Mapping[str, Any]) -> str:
    """Return what decides which rows are trained and which are for validation."""
    files = receipt.get("files")
    hashes = [value(file, "sha256") for file in files] if isinstance(files, list) else []
    split = [receipt.get(name) for name in ("seed", "rows_trained", "rows_validation", "loss_on")]
    return repr((hashes, split))
