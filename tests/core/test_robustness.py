"""Planes of right answers are those of a PCA; attacks change prompts a little, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data.attacks import ATTACKS, attacked_row, attacked_text
from edgetune.data.content import Chat
from edgetune.data.formats import detect
from edgetune.data.problems import RowError
from edgetune.insight.planes import Plane

TEXT = "Could you have the garage door closed at quarter to 6, please?"
CHANGED = ("letters swapped", "letters dropped", "letters mistyped")


@given(st.integers(2, 40), st.integers(1, 12), st.floats(0.1, 0.999), st.integers(0, 10**6))
def test_a_plane_is_that_of_the_principal_components(
    count: int, width: int, share: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(count, width)) * draw.uniform(0.1, 5, width) + draw.normal(
        size=width
    )
    plane = Plane.near(points, share)

    variances, axes = np.linalg.eigh(np.cov(points.T, bias=True).reshape(width, width))
    order = np.argsort(-variances)
    explained = np.cumsum(variances[order]) / variances.sum()
    kept = len(plane.directions)
    assert explained[kept - 1] >= share - 1e-9
    assert kept == 1 or explained[kept - 2] < share + 1e-9
    principal = axes[:, order[:kept]]
    projection = plane.directions.T @ plane.directions
    np.testing.assert_allclose(projection, principal @ principal.T, atol=1e-6)
    off = plane.off(points)
    np.testing.assert_allclose(off @ plane.directions.T, 0, atol=1e-8)
    np.testing.assert_allclose(plane.off(points - off), 0, atol=1e-8)
    assert (off**2).sum() <= (1 - share) * ((points - points.mean(0)) ** 2).sum() + 1e-6


def test_points_that_are_all_the_same_have_a_plane_of_no_dimension() -> None:
    plane = Plane.near(np.ones((5, 3)), 0.95)
    assert plane.directions.shape == (0, 3)
    np.testing.assert_array_equal(plane.off(np.array([[1.0, 2.0, 1.0]])), [[0.0, 1.0, 0.0]])


@pytest.mark.parametrize("attack", ATTACKS)
@given(seed=st.integers(0, 10**6))
def test_an_attack_changes_a_few_places(attack: str, seed: int) -> None:
    found = attacked_text(TEXT, attack, Random(seed))
    assert found == attacked_text(TEXT, attack, Random(seed))
    words, changed = TEXT.split(" "), found.split(" ")
    if attack in CHANGED:
        assert len(words) == len(changed)
        pairs = [(old, new) for old, new in zip(words, changed, strict=True) if old != new]
        assert len(pairs) <= 2
        assert all(abs(len(old) - len(new)) <= 2 and len(old) >= 4 for old, new in pairs)
    elif attack == "words swapped":
        assert sorted(words) == sorted(changed)
    else:
        assert [word for word in changed if word in words or word == "6,"] != []
        assert found.replace(" ", "") != TEXT.replace(" ", "")
    assert "6" in found


def test_short_words_and_numbers_stay() -> None:
    for attack in CHANGED:
        assert (
            attacked_text("set to 12345 at 7:30 now", attack, Random(1))
            == "set to 12345 at 7:30 now"
        )


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "ask", "completion": "say"}, {"prompt": "ASK", "completion": "say"}),
        ({"text": "ask", "label": 3, "system": "be"}, {"text": "ASK", "label": 3, "system": "be"}),
        (
            {"instruction": "ask", "input": "it", "output": "say"},
            {"prompt": "ASK\n\nIT", "completion": "say"},
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                          {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                          {"role": "user", "content": "C"}, {"role": "assistant", "content": "d"}]},
        ),
    ],
)  # fmt: skip
def test_what_the_user_says_last_is_changed(
    row: dict[str, object], found: dict[str, object]
) -> None:
    content = detect(row).read(row)
    changed = attacked_row(content, str.upper)
    assert changed == found
    again = detect(changed).read(changed)
    assert type(again) is type(content)


def test_tools_and_their_calls_stay() -> None:
    call = {"type": "function", "function": {"name": "switch", "arguments": {"what": "лампа"}}}
    row = {
        "messages": [
            {"role": "user", "content": "лампа"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "switch", "content": "done"},
            {"role": "assistant", "content": "It is on."},
        ],
        "tools": [{"type": "function", "function": {"name": "switch", "parameters": {}}}],
    }
    content = detect(row).read(row)
    changed = attacked_row(content, str.upper)
    again = detect(changed).read(changed)
    assert isinstance(content, Chat)
    expected = [{**content.messages[0], "content": "ЛАМПА"}, *content.messages[1:]]
    assert again == replace(content, messages=expected)


@pytest.mark.parametrize(
    "row", [{"text": "alone"}, {"messages": [{"role": "assistant", "content": "b"}]}]
)
def test_rows_that_nobody_asks_anything_in_are_refused(row: dict[str, object]) -> None:
    with pytest.raises(RowError, match="no prompt that could be changed"):
        attacked_row(detect(row).read(row), str.upper)
