"""Rows under an attack are the rows of the file, read as the run reads them, but for their prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from rows import chat, write_rows

from edgetune.data import Examples
from edgetune.data.attacks import ATTACKS, attacked_text
from edgetune.errors import DataError, UsageError
from edgetune.workflows.attacked_rows import AttackableRows, answered_rows
from edgetune.workflows.opened import Opened
from edgetune.workflows.references import open_references

ASKED = "Please switch the radio in the attic on."
Training = Callable[..., Opened]


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    (found,) = open_references(("tiny",))
    yield found
    found.session.close()


@pytest.fixture
def trained(opened: Opened) -> Training:
    """Return what gives the same with other settings of its training."""
    plan = opened.plan
    return lambda **own: replace(opened, plan=replace(plan, training=replace(plan.training, **own)))


def _attacked(
    opened: Opened, file: Path, losses: Callable[[Examples], list[float]], attack: str, tries: int
) -> list[str]:
    def told(rows: Examples) -> NDArray[np.float64]:
        return np.array(losses(rows))

    scratch = file.parent / "scratch"
    scratch.mkdir()
    rows = AttackableRows.read(opened, file).attacked(attack, told, scratch, tries=tries, seed=3)
    return [opened.tokenizer.decode(tokens) for tokens, _ in rows]


def _variant(number: int, attack: str, text: str = ASKED) -> str:
    return attacked_text(text, attack, Random(f"3:{attack}:{number}"))


def test_the_worst_is_taken_and_what_is_no_number_is_worse(opened: Opened, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": ASKED, "completion": "done"}])
    attack = "words swapped"
    for number, losses in enumerate(([2.0, 1.0], [1.0, 2.0], [np.nan, 5.0], [5.0, np.nan])):
        left = iter(losses)
        (tmp_path / str(number)).mkdir()
        own = file.rename(tmp_path / str(number) / file.name)
        (found,) = _attacked(opened, own, lambda _, left=left: [next(left)], attack, 2)  # type: ignore[misc]
        assert _variant((0, 1, 0, 1)[number], attack) in found
        assert "done" in found
        file = own


def test_rows_are_there_where_every_loss_is_no_number(opened: Opened, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": ASKED, "completion": "done"}] * 3)
    found = _attacked(opened, file, lambda rows: [np.nan] * len(rows), "fillers", 2)
    assert len(found) == 3
    assert all("done" in text for text in found)


def test_columns_are_those_that_the_run_reads(trained: Training, tmp_path: Path) -> None:
    row = {"q": ASKED, "a": "done", "text": "never read", "prompt": "nor this", "completion": "no"}
    file = write_rows(tmp_path / "rows.jsonl", [row])
    run = trained(fields="prompt=q,completion=a")
    (found,) = _attacked(run, file, lambda _: [0.0], "letters dropped", 1)
    assert _variant(0, "letters dropped") in found
    assert "done" in found
    assert not any(other in found for other in ("never", "nor this"))


def test_labels_that_are_numbers_keep_their_names(opened: Opened, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": ASKED, "label": 1}])
    features = {"label": {"names": ["off", "on"], "_type": "ClassLabel"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": features}))
    (found,) = _attacked(opened, tmp_path / "rows.jsonl", lambda _: [0.0], "fillers", 1)
    assert _variant(0, "fillers") in found
    assert found.rstrip().split()[-1].startswith("on")


@pytest.mark.parametrize("attack", ATTACKS)
def test_any_language_is_attacked(attack: str, opened: Opened, tmp_path: Path) -> None:
    asked = [
        "Включи лампу на кухне, пожалуйста.",
        "打开厨房的灯好吗",
        "🙂 \n\t",
        "a\u0301e\u0301 \x7f",
    ]
    file = write_rows(tmp_path / "rows.jsonl", [chat(each, "готово") for each in asked])
    rng = Random(f"3:{attack}:0")
    expected = [chat(attacked_text(each, attack, rng), "готово") for each in asked]
    wanted = answered_rows(opened, write_rows(tmp_path / "expected.jsonl", expected))
    found = _attacked(opened, file, lambda rows: [0.0] * len(rows), attack, 1)
    assert found == [opened.tokenizer.decode(tokens) for tokens, _ in wanted]


def test_rows_that_cannot_be_attacked_are_refused_before_anything_is_computed(
    opened: Opened, trained: Training, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "text.jsonl", [{"text": "alone"}])
    with pytest.raises(DataError, match=r"text\.jsonl:1 cannot be attacked: .* no prompt"):
        AttackableRows.read(opened, file)
    pair = {"prompt": ASKED, "chosen": "yes", "rejected": "no"}
    pairs = write_rows(tmp_path / "pairs.jsonl", [pair])
    with pytest.raises(UsageError, match="weighed, not answered"):
        AttackableRows.read(trained(objective="dpo"), pairs)


def test_attacks_that_make_rows_too_long_are_told(
    opened: Opened, trained: Training, tmp_path: Path
) -> None:
    words, most = " switch on", opened.model.shape.max_context
    prompt = words * (int(0.95 * most) // len(opened.tokenizer.encode(words)))
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": prompt, "completion": "done"}] * 2)
    for rule in ("drop", "refuse"):
        own = AttackableRows.read(trained(long_rows=rule), file)
        with pytest.raises(UsageError, match="once they are attacked"):
            own.attacked("fillers", lambda x: np.zeros(len(x)), tmp_path, tries=1, seed=0)
