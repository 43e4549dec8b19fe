"""How much an answer says what was expected: exact match, token F1, ROUGE-L, JSON."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScores:
    """Means over rows, each from 0 to 1.

    ``json_valid`` and ``json_equal`` are over the rows that expect a JSON object or list, None if
    there are none.
    """

    exact_match: float
    token_f1: float
    rouge_l: float
    json_valid: float | None = None
    json_equal: float | None = None


def score_texts(found: Sequence[str], expected: Sequence[str]) -> TextScores:
    """Return how well answers match what was expected; there is at least one row."""
    pairs = list(zip(found, expected, strict=True))
    parsed = [
        (json_of(one), wanted) for one, text in pairs if (wanted := json_of(text)) is not None
    ]
    return TextScores(
        exact_match=fmean(one.strip() == other.strip() for one, other in pairs),
        token_f1=fmean(token_f1(*pair) for pair in pairs),
        rouge_l=fmean(rouge_l(*pair) for pair in pairs),
        json_valid=fmean(one is not None for one, _ in parsed) if parsed else None,
        json_equal=fmean(one == wanted for one, wanted in parsed) if parsed else None,
    )


def token_f1(found: str, expected: str) -> float:
    """Return the F1 of the words that two texts share, in any order, as SQuAD counts it.

    Case, punctuation and the articles a, an, the do not count (Rajpurkar et al. 2016,
    arXiv 1606.05250, section 6.1). Texts without any words left are right if both are.

    >>> token_f1("The lamp, in the kitchen", "lamp kitchen")
    0.8
    """
    one, other = _squad_words(found), _squad_words(expected)
    if not one or not other:
        return float(one == other)
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other))


def rouge_l(found: str, expected: str) -> float:
    """Return the F1 of the longest common subsequence of words (Lin 2004, section 3.1, beta = 1).

    >>> rouge_l("police kill the gunman", "police killed the gunman")
    0.75
    >>> rouge_l("the gunman kill police", "police killed the gunman")
    0.5
    """
    one, other = (_WORD.findall(text.casefold()) for text in (found, expected))
    if not one or not other:
        return float(one == other)
    return 2 * _longest_common(one, other) / (len(one) + len(other))


def json_of(text: str) -> dict[str, Any] | list[Any] | None:
    """Return the JSON object or list that a text is, None if it is none.

    >>> json_of(' {"room": "kitchen"} '), json_of("[1, 2"), json_of("6")
    ({'room': 'kitchen'}, None, None)
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None


def _squad_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))
    return _ARTICLES.sub(" ", kept).split()


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a row of the table as a number's bits.

    Crochemore et al. 2001, "A fast and practical bit-vector algorithm for the longest common
    subsequence problem": zeros mark the places at which a row of the table grows.
    """
    places: Counter[str] = Counter()
    for index, word in enumerate(one):
        places[word] |= 1 << index
    row = everything = (1 << len(one)) - 1
    for word in other:
        matching = row & places[word]
        row = ((row + matching) | (row - matching)) & everything
    return len(one) - row.bit_count()
