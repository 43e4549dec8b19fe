"""Texts with labels from the command line: trained, then told apart with probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import Cli, write_rows

NAMES = "broken,working"
ROWS = [
    {"text": f"The {thing} is {state}.", "label": number}
    for thing in ("lamp", "heater", "fan", "door", "radio", "window")
    for number, states in enumerate((("cold", "late", "poor"), ("warm", "fine", "great")))
    for state in states
]


def test_labels_are_trained_and_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = Cli(capsys)
    write_rows(Path("rows.jsonl"), ROWS)
    trained = cli(
        "train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--output", "run",
        "--label-names", NAMES, "--steps", "40", "--learning-rate", "0.005", "--seed", "3",
        "--no-verdict", "--samples", "0",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert "Labels      trained: " in trained.err

    called = cli("eval", "run", "--data", "rows.jsonl", "--json", "-q")
    assert (called.code, called.err) == (0, "")
    scores = json.loads(called.out)
    base, tuned = (scores[name]["labels"] for name in ("base", "tuned"))
    assert base["always"] == tuned["always"] == 0.5
    assert tuned["accuracy"] > 0.9 > base["accuracy"]
    assert 0 <= tuned["ece"] <= 1
    assert {name: label["rows"] for name, label in tuned["labels"].items()} == {
        "broken": 18, "working": 18,
    }  # fmt: skip
    counts = [n for row in tuned["confusion"].values() for n in row.values()]
    assert sum(counts) == len(ROWS)

    strange = [*ROWS[:4], {"text": "The lamp is gone.", "label": "missing"}]
    write_rows(Path("strange.jsonl"), strange)
    refused = cli("eval", "run", "--data", "strange.jsonl")
    assert refused.code == 4
    assert "'missing' is not one of --label-names: broken, working" in refused.err
    names = NAMES.split(",")
    said = [{**row, "label": names[row["label"]]} for row in strange[:4]]
    write_rows(Path("said.jsonl"), [*said, strange[4]])
    unnamed = [{**row, "label": names[row["label"]]} for row in ROWS]
    write_rows(Path("unnamed.jsonl"), unnamed)
    short = ["--steps", "1", "--output", "short", "--no-verdict", "--samples", "0", "-q"]
    assert (
        cli("train", "--model", "tiny", "--device", "cpu", "--data", "unnamed.jsonl", *short).code
        == 0
    )
    found = cli("eval", "short", "--data", "said.jsonl")
    assert "Labels that were not trained: missing." in found.err
    for text in ("Labels, tuned: accuracy", "macro F1", "expected in rows", "missing"):
        assert text in found.out
    assert max(map(len, found.out.splitlines())) <= 80
    api = pytest.importorskip("edgetune")
    with api.load_run("run") as run:
        evaluated = run.evaluate(ROWS[:6])
    assert evaluated.tuned.labels.accuracy > 0.8
