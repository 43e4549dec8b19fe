"""The verdict on a run: what it says of the figures, and the neutral text that some of them are of."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest

from edgetune.neutral import Drift, neutral_text
from edgetune.verdict import Answered, Compared, Facts, judged

GOOD = Facts(
    held_out=Compared(base_loss=3.0, loss=1.0, count=40),
    neutral=Compared(base_loss=3.5, loss=3.5, count=1500),
    evaluations=((10, 1.5), (20, 1.1), (30, 1.0)),
    steps=30,
    training=(1.0, 0.9),
    trained=360,
)


def test_nothing_asks_for_more_epochs_of_what_was_trained_for_too_long() -> None:
    early = ((10, 1.0), (20, 1.1), (30, 1.2))
    little = Compared(base_loss=3.0, loss=2.99, count=40)
    unlike = Answered(count=3, right=0, base_right=0, token_f1=0.1, base_token_f1=0.1)
    falling = ((10, 1.5), (20, 1.1), (30, 1.0))
    for facts in (
        replace(GOOD, evaluations=early, held_out=little),
        replace(GOOD, evaluations=early, answers=unlike),
        replace(GOOD, evaluations=falling, training=(0.1, 0.1), answers=unlike),
    ):
        said = " ".join(judged(facts).advice)
        assert "would have done" in said or "fewer epochs" in said
        assert "more --epochs" not in said.lower()
        assert "higher --learning-rate" in said


def risen(share: float) -> Facts:
    return replace(GOOD, neutral=Compared(base_loss=3.5, loss=3.5 + log(1 + share), count=1500))


@pytest.mark.parametrize(
    ("base", "loss", "outcome", "words"),
    [
        (3.0, 1.0, "learned", "It learned: validation loss 3.0000 to 1.0000 on 40 rows."),
        (3.0, 2.99, "learned little", "It learned little: "),
        (3.0, 3.0, "did not help", "It did not help: "),
        (3.0, 3.2, "did not help", "It did not help: "),
    ],
)
def test_what_was_learned(base: float, loss: float, outcome: str, words: str) -> None:
    found = judged(replace(GOOD, held_out=Compared(base_loss=base, loss=loss, count=40)))
    assert found.outcome == outcome
    assert found.sentence.startswith(words)
    assert (found.improved_until is None) is (outcome == "did not help")


@pytest.mark.parametrize(
    ("right", "f1", "outcome", "words"),
    [
        (
            0,
            0.1,
            "learned in part",
            "It learned in part, but no sampled answer is as expected yet: ",
        ),
        (
            0,
            0.9,
            "learned",
            "; 0 of 3 sampled answers exactly right (base: 0), token F1 0.90",
        ),
        (
            2,
            0.9,
            "learned",
            "; 2 of 3 sampled answers exactly right (base: 0), token F1 0.90",
        ),
        (3, 1.0, "learned", "; 3 of 3 sampled answers exactly right (base: 0)."),
    ],
)
def test_answers_that_were_seen_count(right: int, f1: float, outcome: str, words: str) -> None:
    answers = Answered(count=3, right=right, base_right=0, token_f1=f1, base_token_f1=0.55)
    found = judged(replace(GOOD, answers=answers))
    assert found.outcome == outcome
    assert words in found.sentence
    assert "validation loss 3.0000 to 1.0000 on 40 rows" in found.sentence
    assert any("eval RUN" in text for text in found.advice) is (outcome == "learned in part")


@pytest.mark.parametrize(
    ("share", "how"),
    [
        (-0.3, "nothing"), (0.0, "nothing"), (0.01, "nothing to speak of"), (0.05, "a little"),
        (0.3, "some"), (0.8, "much"),
    ],
)  # fmt: skip
def test_what_was_forgotten(share: float, how: str) -> None:
    found = judged(risen(share))
    assert f"It forgot {how}: perplexity on neutral text 33.12 to" in found.sentence
    assert f"({100 * share:+.1f} %)" in found.sentence
    assert any("To forget less" in text for text in found.advice) is (share > 0.1)


def test_advice_does_not_contradict_itself() -> None:
    still = replace(risen(0.5), evaluations=((10, 1.5), (20, 1.2), (30, 1.0)))
    over = replace(still, evaluations=((10, 1.0), (20, 1.1), (30, 1.2)))
    assert "fewer --epochs" not in " ".join(judged(still).advice)
    assert "more --epochs" in " ".join(judged(still).advice)
    assert "fewer --epochs" in " ".join(judged(over).advice)


def test_a_base_that_does_not_know_the_text_has_nothing_to_forget() -> None:
    neutral = Compared(base_loss=9.0, loss=9.9, count=1500)
    found = judged(replace(GOOD, neutral=neutral))
    assert "What it forgot cannot be said" in found.sentence
    assert found.advice == judged(GOOD).advice


def test_without_held_out_rows_nothing_is_claimed() -> None:
    found = judged(replace(GOOD, held_out=None, evaluations=()))
    assert found.outcome == "unknown"
    assert "no rows were held out. The training loss ended at 0.9500." in found.sentence
    assert any("no validation rows" in text for text in found.advice)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ((1.5, 1.2, 1.0), "still improved at the end"),
        ((1.5, 1.001, 1.0), None),
        ((1.0, 1.1, 1.2), "stopped improving at step 10 of 30: about --steps 10"),
        ((1.5, 1.0, 1.0), "stopped improving at step 20 of 30"),
    ],
)
def test_when_it_stopped_improving(losses: tuple[float, ...], words: str | None) -> None:
    evaluations = tuple(zip((10, 20, 30), losses, strict=True))
    found = judged(replace(GOOD, evaluations=evaluations))
    said = [text for text in found.advice if "improv" in text]
    assert len(said) == (words is not None)
    assert all(words in text for text in said if words)


@pytest.mark.parametrize("right", [2, 3])
def test_more_training_is_not_advised_where_every_answer_is_right(right: int) -> None:
    answers = Answered(count=3, right=right, base_right=0, token_f1=1.0, base_token_f1=0.5)
    still = replace(GOOD, evaluations=((10, 1.5), (20, 1.2), (30, 1.0)), answers=answers)
    advised = any("improved at the end" in text for text in judged(still).advice)
    assert advised is (right < 3)


@pytest.mark.parametrize(
    ("trained", "words"), [(12, "expect little"), (40, "the result depends on each"), (360, None)]
)
def test_few_rows_are_said(trained: int, words: str | None) -> None:
    advice = judged(replace(GOOD, trained=trained)).advice
    assert any(words in text for text in advice) if words else "rows" not in " ".join(advice)


def test_rows_that_were_learned_by_heart_are_said() -> None:
    advice = judged(replace(GOOD, training=(0.1, 0.05))).advice
    assert any("remembers rows more than it learns" in text for text in advice)


def test_losses_of_answers_and_huge_ones_are_no_accident() -> None:
    found = judged(
        replace(
            GOOD,
            held_out=Compared(base_loss=0.6931, loss=-0.2, count=1),
            neutral=Compared(base_loss=3.0, loss=5000.0, count=9),
        )
    )
    assert "on 1 row." in found.sentence
    assert "It forgot much" in found.sentence


def test_the_neutral_text_is_plain_prose_of_some_length() -> None:
    text = neutral_text()
    assert 600 <= len(text.split()) <= 1300
    assert len(text.split("\n\n")) == 12
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "edgetune" not in text.lower()


def test_drift_is_the_ratio_of_perplexities() -> None:
    assert Drift(base_loss=2.0, loss=2.0 + log(1.5), tokens=9, whole=True).share == pytest.approx(
        0.5
    )
