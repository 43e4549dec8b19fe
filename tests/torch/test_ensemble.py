"""Several prompts over one base that answer as one: by vote, or by the mean probability of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import Cli, call, write_rows

from edgetune.metrics.labels import probabilities
from edgetune.workflows.ensemble import vote
from edgetune.workflows.labelling import log_probs
from edgetune.workflows.references import open_references
from edgetune.workflows.scoring import dataset_of, labels_of

ROWS = [
    {"text": f"The {thing} is {state}.", "label": label}
    for thing in ("lamp", "heater", "fan", "door")
    for label, states in (("broken", ("cold", "late")), ("working", ("warm", "fine")))
    for state in states
]
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prompts for one task, from different seeds."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(folder / "rows.jsonl", ROWS)
    for seed, name in enumerate(NAMES):
        called = call(
            "train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--method",
            "prompt", "--prompt-length", "4", "--steps", "8", "--learning-rate", "0.1",
            "--validation", "0", "--seed", str(seed), "--output", name, cwd=folder,
        )  # fmt: skip
        assert called.code == 0, called.err
    return folder


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(folder)
    return Cli(capsys)


def test_labels_have_their_mean_probability(cli: Cli) -> None:
    called = cli("eval", *NAMES, "--data", "rows.jsonl", "--ensemble", "--json", "-q")
    assert (called.code, called.err) == (0, "")
    found: dict[str, Any] = json.loads(called.out)

    opened = open_references(NAMES)
    dataset = dataset_of(opened[0], Path("rows.jsonl"))
    labels, _ = labels_of(opened, dataset)
    assert labels is not None
    each = [probabilities(log_probs(one, dataset.train, labels)) for one in opened]
    opened[0].session.close()
    told = np.mean(each, axis=0).argmax(1)
    expected = [labels.names.index(row["label"]) for row in ROWS]
    assert found["ensemble"]["members"] == list(NAMES)
    assert found["ensemble"]["answers"] is None
    assert found["ensemble"]["labels"]["accuracy"] == pytest.approx(np.mean(told == expected))
    for name, shares in zip(NAMES, each, strict=True):
        accuracy = np.mean(shares.argmax(1) == expected)
        assert found[name]["labels"]["accuracy"] == pytest.approx(accuracy)


def test_answers_are_voted_on(cli: Cli) -> None:
    asked = ("-p", "The lamp is", "-p", "The fan is", "--max-tokens", "4", "--json", "-q")
    each = json.loads(cli("generate", *NAMES, *asked).out)
    said = json.loads(cli("generate", *NAMES, *asked, "--vote").out)
    assert [one["run"] for one in said] == ["vote", "vote"]
    for number, one in enumerate(said):
        answers = [x["text"] for x in each[3 * number : 3 * number + 3]]
        assert one["text"] == vote(answers)


def test_one_alone_is_no_ensemble(cli: Cli) -> None:
    assert cli("eval", "one", "--data", "rows.jsonl", "--ensemble").code == 2
    assert cli("generate", "one", "-p", "a", "--vote").code == 2


def test_the_most_frequent_answer_wins_and_of_equals_the_first() -> None:
    assert vote(["b", "a ", "a"]) == "a "
    assert vote(["b", "a"]) == "b"
