"""Runs, each over its own base, scored on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgetune.workflows.over import Over
from edgetune.workflows.references import open_references
from edgetune.workflows.run_figures import RunFigures
from edgetune.workflows.scoring import Scores, dataset_of, labels_of, score_each


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
