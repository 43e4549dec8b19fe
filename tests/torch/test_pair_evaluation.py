"""A run that learned from pairs is scored on pairs: as it validated itself, beside its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import Cli, write_rows

GOOD, BAD = "set kitchen lamp on now", "Sure, I will do that at once."
PAIRS = [
    {"prompt": f"Turn on the lamp in room {n}.", "chosen": GOOD, "rejected": f"{BAD} {n}"}
    for n in range(14)
]


UNPAIRED = [
    {"prompt": row["prompt"], "completion": row["chosen" if n % 3 else "rejected"],
     "label": n % 3 > 0}
    for n, row in enumerate(PAIRS)
]  # fmt: skip


@pytest.mark.parametrize(("objective", "rows"), [("dpo", PAIRS), ("kto", UNPAIRED)])
def test_preferences_are_scored_as_in_the_run(
    objective: str, rows: list[dict[str, object]],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    cli = Cli(capsys)
    write_rows(Path("pairs.jsonl"), rows[:8])
    write_rows(Path("held.jsonl"), rows[8:])
    trained = cli(
        "train", "--model", "tiny", "--device", "cpu", "--data", "pairs.jsonl", "--output", "run",
        "--validation-data", "held.jsonl", "--objective", objective, "--steps", "4", "--rank", "2",
        "--learning-rate", "0.005", "--eval-every", "2", "--no-verdict", "--samples", "0",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    shared = json.loads(Path("run/receipt.json").read_text("utf-8"))["shared"]
    assert (shared > 0) is (objective == "dpo")
    assert ("both answers of a pair share" in Path("run/plan.yaml").read_text("utf-8")) is (
        objective == "dpo"
    )
    lines = map(json.loads, Path("run/metrics.jsonl").read_text("utf-8").splitlines())
    own = {line["step"]: line for line in lines if line["event"] == "eval"}

    called = cli("eval", "run", "--data", "held.jsonl", "--json", "-q")
    assert (called.code, called.err) == (0, "")
    scores = json.loads(called.out)
    kept = min(own.values(), key=lambda line: line["loss"])
    for name, line in {"base": own[0], "tuned": kept}.items():
        found = scores[name]
        assert found["rows"] == 6
        assert found["perplexity"] is None
        assert found["loss"] == pytest.approx(line["loss"], rel=1e-5)
        assert found["accuracy"] == line["accuracy"]
        for metric, value in found["rewards"].items():
            assert value == pytest.approx(line[metric], abs=1e-5), metric
    assert scores["tuned"]["rewards"]["rewards/margins"] > 0

    table = cli("eval", "run", "--data", "held.jsonl")
    for title in ("told apart", "margin", "chosen", "rejected"):
        assert title in table.out
    assert "perplexity" not in table.out
    refused = cli("eval", "run", "--data", "held.jsonl", "--show", "1")
    assert refused.code == 2
    assert "Rows of preferences are weighed, not answered" in refused.err

    write_rows(Path("plain.jsonl"), [{"prompt": "Hello.", "completion": "Good day."}] * 2)
    plain = json.loads(cli("eval", "run", "--data", "plain.jsonl", "--json", "-q").out)
    assert plain["tuned"]["rewards"] is None
    assert plain["tuned"]["perplexity"] > 1
    missing = "rejected" if objective == "dpo" else "label"
    write_rows(Path("faulty.jsonl"), [*rows, {**rows[0], missing: None}])
    faulty = cli("eval", "run", "--data", "faulty.jsonl")
    assert faulty.code == 4
    assert f"{missing} is null" in faulty.err
