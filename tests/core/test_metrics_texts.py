"""Metrics of answers against published examples and written-out definitions."""

from __future__ import annotations

import doctest
import json
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.metrics import texts
from edgetune.metrics.texts import json_of, rouge_l, score_texts, token_f1

words = st.lists(st.sampled_from("abcd"), max_size=12)


def test_examples() -> None:
    found = doctest.testmod(texts)
    assert (found.failed, found.attempted) == (0, 4)


def longest_common(one: list[str], other: list[str]) -> int:
    """The definition, by its recursion."""

    @cache
    def upto(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if one[i - 1] == other[j - 1]:
            return upto(i - 1, j - 1) + 1
        return max(upto(i - 1, j), upto(i, j - 1))

    return upto(len(one), len(other))


@given(words, words)
def test_rouge_l_is_the_f_measure_of_precision_and_recall(one: list[str], other: list[str]) -> None:
    found = rouge_l(" ".join(one), " ".join(other))
    common = longest_common(one, other)
    if not common:
        assert found == float(not one and not other)
        return
    precision, recall = common / len(one), common / len(other)
    assert found == pytest.approx(2 * precision * recall / (precision + recall))


def test_rouge_l_of_lin_2004() -> None:
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == 3 / 4
    assert rouge_l("the gunman kill police", reference) == 2 / 4
    assert rouge_l("the gunman police killed", reference) == 2 / 4  # one of two sequences


@pytest.mark.parametrize(
    ("found", "expected", "f1"),
    [
        ("Denver Broncos", "the Denver Broncos.", 1.0),
        ("Broncos", "Denver Broncos", 2 / 3),
        ("Denver Denver", "Denver", 2 / 3),
        ("Carolina Panthers", "Denver Broncos", 0.0),
        ("", "", 1.0),
        ("the", "a", 1.0),
        ("", "x", 0.0),
        ("«Größe»", "größe", 1.0),
    ],
)
def test_token_f1_as_squad_counts_it(found: str, expected: str, f1: float) -> None:
    assert token_f1(found, expected) == pytest.approx(f1)


@given(words, words)
def test_scores_are_symmetric_shares(one: list[str], other: list[str]) -> None:
    pair = " ".join(one), " ".join(other)
    for metric in (token_f1, rouge_l):
        assert 0 <= metric(*pair) == metric(*reversed(pair)) <= 1
        assert metric(pair[0], pair[0]) == 1


def test_json_counts_where_it_is_expected() -> None:
    expected = ['{"a": 1, "b": [2]}', "plain", '{"a": 1}', "[1]", "{}"]
    found = ['{"b": [2], "a": 1}', '{"a": 1}', '{"a": 2}', "[1", "{}"]
    scores = score_texts(found, expected)
    assert scores.json_valid == 3 / 4
    assert scores.json_equal == 2 / 4
    assert scores.exact_match == 1 / 5
    assert score_texts(["x"], ["y"]).json_valid is None


@given(
    st.recursive(st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_json_of_what_json_writes(value: object) -> None:
    assert json_of(json.dumps(value)) == (value if isinstance(value, (dict, list)) else None)
