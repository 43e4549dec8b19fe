"""How well labels are told apart, as people read it: at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from edgetune.cli.show import table
from edgetune.metrics.labels import LabelScores

_WIDTH = 80
_NAME = 20
_CELL = 8
_ROWS = 20
"""Labels that are listed one by one, the others as a number."""


def label_text(name: str, scores: LabelScores) -> str:
    """Return the scores of a model's labels: all together, one by one, and the confusion table."""
    return "\n".join(_lines(name, scores))


def _lines(name: str, scores: LabelScores) -> Iterator[str]:
    yield (
        f"Labels, {name}: accuracy {scores.accuracy:.1%} (the most frequent label alone "
        f"{scores.always:.1%}),"
    )
    yield f"macro F1 {scores.macro_f1:.1%}, calibration error (ECE) {scores.ece:.1%}"
    shown = list(scores.labels.items())[:_ROWS]
    rows = [
        (_cut(label, _NAME), f"{found.rows:,}", *_shares(found.precision, found.recall, found.f1))
        for label, found in shown
    ]
    yield table(rows, ("", "rows", "precision", "recall", "F1"))
    if (more := len(scores.labels) - len(shown)) > 0:
        yield f"and {more:,} more labels: --json has them all"
    yield from _confusion(scores)


def _confusion(scores: LabelScores) -> Iterator[str]:
    """Yield expected labels as rows and predicted ones as columns, or the largest confusions."""
    labels = list(scores.labels)
    if _NAME + (_CELL + 2) * len(labels) <= _WIDTH:
        yield "expected in rows, predicted in columns"
        rows = [
            (_cut(label, _NAME), *(str(row.get(other, 0)) for other in labels))
            for label, row in scores.confusion.items()
        ]
        yield table(rows, ("", *(_cut(label, _CELL) for label in labels)))
        return
    wrong = sorted(
        ((count, label, other) for label, row in scores.confusion.items()
         for other, count in row.items() if other != label),
        reverse=True,
    )  # fmt: skip
    if wrong:
        yield "most frequent confusions"
        rows = [(_cut(label, _NAME), _cut(other, _NAME), str(n)) for n, label, other in wrong[:10]]
        yield table(rows, ("expected", "predicted", "rows"))


def _shares(*shares: float) -> tuple[str, ...]:
    return tuple(f"{share:.1%}" for share in shares)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
