"""What to know of a run before its result is trusted: few rows, tiny validation sets, gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

VERY_FEW_ROWS = 20
"""With fewer rows than this little can be learned, whatever the method."""

FEW_ROWS = 50
"""With fewer rows than this each of them decides."""

FEW_VALIDATION_ROWS = 20
"""The loss of fewer rows than this moves by chance."""

DOMINANT = 0.8
"""A label with more than this share of the rows makes accuracy say little."""

FEW_OF_A_LABEL = 5

LEAST_GAP = 0.2
"""Nats a token between training and validation that are not worth a word."""

GAP = 0.5
"""Neither are differences of less than this share of the training loss."""


def row_cautions(trained: int, validation: int) -> tuple[str, ...]:
    """Return what numbers of rows let one expect, a sentence each; nothing if they are in order.

    >>> row_cautions(1000, 100)
    ()
    >>> for text in row_cautions(12, 0): print(text)
    There are only 12 rows to train on: expect little. 50 to 200 are a good start.
    There are no validation rows: nothing tells when the model stops learning.
    """
    found: list[str] = []
    if trained < VERY_FEW_ROWS:
        found.append(
            f"There {_are(trained)} only {_rows(trained)} to train on: expect little. 50 to 200 "
            "are a good start."
        )
    elif trained < FEW_ROWS:
        found.append(
            f"There are only {_rows(trained)} to train on: the result depends on each of them."
        )
    if not validation:
        found.append("There are no validation rows: nothing tells when the model stops learning.")
    elif validation < FEW_VALIDATION_ROWS:
        found.append(
            f"There {_are(validation)} only {_rows(validation)} for validation: small differences "
            "of their loss are chance."
        )
    return tuple(found)


def label_cautions(counts: Mapping[str, int], *, named: bool) -> tuple[str, ...]:
    """Return what the numbers of rows of each label let one expect; nothing without labels.

    ``named`` is whether labels that were numbers have names.

    >>> label_cautions({"spam": 95, "ham": 5}, named=False)
    ('95% of the rows are spam: always guessing it is right as often. Judge by macro F1.',)
    >>> label_cautions({"spam": 50, "ham": 50}, named=False)
    ()
    """
    if not counts:
        return ()
    found: list[str] = []
    label, most = max(counts.items(), key=lambda item: item[1])
    share = most / sum(counts.values())
    if len(counts) == 1:
        found.append(f"All rows to train on are {label}: there is nothing to tell apart.")
    elif share > DOMINANT:
        found.append(
            f"{share:.0%} of the rows are {label}: always guessing it is right as often. "
            "Judge by macro F1."
        )
    rare = [name for name, rows in counts.items() if rows < FEW_OF_A_LABEL]
    if rare:
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        found.append(
            f"Labels with fewer than {FEW_OF_A_LABEL} rows to train on: "
            f"{', '.join(rare[:5])}{more}. Expect little of them."
        )
    if not named and all(name.lstrip("-").isdecimal() for name in counts):
        found.append(
            "The labels are numbers, which say nothing to the model. Name them, the first for 0: "
            "--label-names NAME,NAME"
        )
    return tuple(found)


def gap_caution(training: Sequence[float], validation: float) -> str | None:
    """Return a sentence if the validation loss is far above that of the trained rows.

    ``training`` are the losses of the steps before the evaluation that gave ``validation``.

    >>> gap_caution([0.5, 0.3], 0.5) is None, gap_caution([], 2.0) is None
    (True, True)
    >>> gap_caution([0.2, 0.2], 1.3)
    'The loss is 0.2000 on the trained rows and 1.3000 on the validation rows: the model remembers \
rows more than it learns from them. More rows, fewer epochs or a smaller rank usually help.'
    """
    if not training:
        return None
    trained = fmean(training)
    if validation - trained <= max(LEAST_GAP, GAP * trained):
        return None
    return (
        f"The loss is {trained:.4f} on the trained rows and {validation:.4f} on the validation "
        "rows: the model remembers rows more than it learns from them. More rows, fewer epochs or "
        "a smaller rank usually help."
    )


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
