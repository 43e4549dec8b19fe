"""Several adapters over one base that answer as one (Lester et al. 2021, section 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgetune.data import Examples
from edgetune.data.labels import LabelSet
from edgetune.errors import UsageError
from edgetune.metrics.labels import LabelScores, probabilities
from edgetune.metrics.texts import TextScores, score_texts
from edgetune.workflows.labelling import label_scores
from edgetune.workflows.opened import Opened
from edgetune.workflows.scoring import Replies, expected_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """How well several adapters do as one.

    ``answers`` are by vote, None where none were generated; ``labels`` by mean probability, None where
    rows have none.
    """

    members: tuple[str, ...]
    answers: TextScores | None
    labels: LabelScores | None


def vote(answers: Sequence[str]) -> str:
    """Return the answer that most give, white space around it aside; of equals the first.

    >>> vote(["on", "off", " on", "off"]), vote(["a", "b"])
    ('on', 'a')
    """
    counts = Counter(answer.strip() for answer in answers)
    most = max(counts.values())
    return next(answer for answer in answers if counts[answer.strip()] == most)


def ensemble(
    opened: Mapping[str, Opened],
    rows: Examples,
    labels: LabelSet | None,
    replies: Replies,
    *,
    exact_match: bool,
) -> Ensemble:
    """Return how well models do as one, from what each of them says.

    Raises:
        UsageError: if there are fewer than two, or nothing that they could agree on.
    """
    if len(opened) < 2:
        raise UsageError("An ensemble needs at least two adapters. Name another one.")
    if labels is None and not exact_match:
        raise UsageError("An ensemble agrees on answers or on labels: add --exact-match.")
    first = next(iter(opened.values()))
    answers = told = None
    if exact_match:
        each = zip(*(replies.answers[name] for name in opened), strict=True)
        answers = score_texts([vote(said) for said in each], expected_of(first, rows))
    if labels is not None:
        shares = np.mean([probabilities(replies.labels[name]) for name in opened], axis=0)
        told = label_scores(first, rows, labels, np.log(np.maximum(shares, np.finfo(float).tiny)))
    return Ensemble(members=tuple(opened), answers=answers, labels=told)
