"""Scores as columns of a table: what each is called and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from edgetune.report.markup import DASH
from edgetune.workflows.scoring import Scores


@dataclass(frozen=True, slots=True)
class Column:
    """One score: its title, how to find it, and how it is written."""

    title: str
    of: Callable[[Scores], float | None]
    form: str = "{:.1%}"

    def text(self, scores: Scores) -> str:
        """Return the score as text, a dash where there is none."""
        found = self.of(scores)
        return DASH if found is None else self.form.format(found)


def _of_labels(name: str, scores: Scores) -> float | None:
    found: float | None = None if scores.labels is None else getattr(scores.labels, name)
    return found


def _reward(name: str, scores: Scores) -> float | None:
    return None if scores.rewards is None else scores.rewards.get(f"rewards/{name}")


COLUMNS = {
    "predicted": (
        Column("loss", lambda scores: scores.loss, "{:.4f}"),
        Column("perplexity", lambda scores: scores.perplexity, "{:.2f}"),
        Column("token accuracy", lambda scores: None if scores.rewards else scores.accuracy),
    ),
    "weighed": (
        Column("told apart", partial(_reward, "accuracies")),
        Column("margin", partial(_reward, "margins"), "{:.3f}"),
        Column("chosen", partial(_reward, "chosen"), "{:.3f}"),
        Column("rejected", partial(_reward, "rejected"), "{:.3f}"),
    ),
    "answered": (
        Column("exact match", lambda scores: scores.exact_match),
        Column("token F1", lambda scores: scores.token_f1),
        Column("ROUGE-L", lambda scores: scores.rouge_l),
        Column("valid JSON", lambda scores: scores.json_valid),
        Column("same JSON", lambda scores: scores.json_equal),
    ),
    "labels": (
        Column("accuracy", partial(_of_labels, "accuracy")),
        Column("macro F1", partial(_of_labels, "macro_f1")),
        Column("ECE", partial(_of_labels, "ece")),
    ),
}
"""By what was asked of the models."""


def measured(asked: str, scores: Iterable[Scores]) -> list[Column]:
    """Return the columns of which at least one of some scores has a value."""
    found = list(scores)
    return [one for one in COLUMNS[asked] if any(one.of(each) is not None for each in found)]
