"""``edgetune combine``: adapters made into one that everything else takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import random_tensors
from rows import Cli, call, write_rows

from edgetune.adapters import load_adapter, save_adapter
from edgetune.methods import build
from edgetune.model import open_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "home_commands.jsonl"
LEARN = ("--device", "cpu", "--data", "rows.jsonl", "--steps", "6",
         "--learning-rate", "0.01", "--validation", "0")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, two adapters that are noise, and a run that goes on from their sum."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(
        folder / "rows.jsonl", [json.loads(x) for x in EXAMPLES.read_text().splitlines()[:8]]
    )
    method, shape = build("lora", {"rank": 2}), open_model("tiny").shape
    for place in range(2):
        tensors = {name: x * 0.3 for name, x in random_tensors(method, shape, place).items()}
        save_adapter(folder / f"noise-{place}", method, shape, tensors, base="tiny")
    for asked in (
        ("combine", "noise-0", "noise-1", "--how", "svd", "--output", "start"),
        ("train", "--from", "start", *LEARN, "--output", "run"),
    ):
        called = call(*asked, cwd=folder)
        assert called.code == 0, called.err
    return folder


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(folder)
    return Cli(capsys)


def _json(cli: Cli, *arguments: Any) -> dict[str, Any]:
    called = cli(*arguments, "--json", "-q")
    assert called.code == 0, called.err
    found: dict[str, Any] = json.loads(called.out)
    return found


def test_an_adapter_to_go_on_from_is_not_raced_against_others(cli: Cli, tmp_path: Path) -> None:
    called = cli(
        "train", "--from", "start", *LEARN, "--search", "method", "--output", tmp_path / "x"
    )
    assert called.code == 2
    assert "--from goes on with that of start" in called.err


def test_a_sum_less_what_was_added_is_the_run(cli: Cli, tmp_path: Path) -> None:
    both, less = tmp_path / "both", tmp_path / "less"
    _json(cli, "combine", "run", "noise-0", "--how", "task-arithmetic", "--output", both)
    found = _json(
        cli, "combine", both, "noise-0", "--how", "cat", "--weights", "1,-1", "--output", less
    )
    scores = _json(cli, "eval", "run", str(less), "--data", "rows.jsonl")

    assert found["rank"] == 6
    assert found["weights"] == [1.0, -1.0]
    assert scores[str(less)]["loss"] == pytest.approx(scores["run"]["loss"], rel=1e-3)


def test_lorahub_is_no_worse_than_the_best_adapter_alone(cli: Cli, tmp_path: Path) -> None:
    names = ("noise-0", "run", "noise-1")
    found = _json(
        cli, "combine", *names, "--how", "lorahub", "--data", "rows.jsonl",
        "--evaluations", 12, "--output", tmp_path / "found",
    )  # fmt: skip
    search = found["search"]
    scores = _json(cli, "eval", *names, str(tmp_path / "found"), "--data", "rows.jsonl")

    assert search["evaluations"] <= search["limit"] == 12
    assert search["rows"] == 8
    for name, loss in zip(names, search["single_losses"], strict=True):
        assert loss == pytest.approx(scores[name]["loss"], rel=1e-3)
    assert search["base_loss"] == pytest.approx(scores["base"]["loss"], rel=1e-3)
    assert scores[str(tmp_path / "found")]["loss"] == pytest.approx(search["loss"], rel=1e-3)
    assert search["loss"] <= min(search["single_losses"]) + 0.05  # the penalty of one alone
    assert max(np.abs(found["weights"])) <= 1.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "noise-0", "--weights", "1"), "1 numbers for 2 adapters"),
        (("run", "noise-0", "--how", "lorahub"), "give rows with --data"),
        (("run", "noise-0", "--data", "rows.jsonl"), "does not use --data"),
        (("noise-0", "noise-1", "--device", "cpu"), "does not use --device"),
        (("run", "noise-0", "--density", "0.5"), "does not use --density"),
        (("run", "tiny"), "tiny is a model"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    called = cli("combine", *arguments, "--output", tmp_path / "out")

    assert called.code == 2
    assert words in called.err
    assert not (tmp_path / "out").exists()


def test_what_is_not_finite_is_not_written(cli: Cli, tmp_path: Path) -> None:
    called = cli(
        "combine", "noise-0", "noise-1", "--weights", "1e308,1e308", "--output", tmp_path / "x"
    )
    assert (called.code, called.out) == (2, "")
    assert "with the weights 1e+308, 1e+308 makes numbers for model.layers.0" in called.err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_the_file_is_plain_lora(cli: Cli, tmp_path: Path) -> None:
    asked = ("combine", "noise-0", "noise-1", "--output", tmp_path / "out")
    assert cli(*asked).code == 0
    assert "Nothing is overwritten" in cli(*asked).err
    # before anything is read or searched
    searched = cli(*asked, "--how", "lorahub", "--data", "missing.jsonl")
    assert "Nothing is overwritten" in searched.err
    assert load_adapter(tmp_path / "out", open_model("tiny").shape).method.kind == "lora"
