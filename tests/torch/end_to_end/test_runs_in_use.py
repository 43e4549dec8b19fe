"""Runs of the built-in model evaluated and asked, one and several."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import Cli, call, write_rows
from tiny_runs import EXAMPLES, LEARN, LONGEST, generated, held_out_prompts, lines


def test_evaluation_knows_the_columns_that_the_run_had(folder: Path, cli: Cli) -> None:
    asked = {"question": "Is it on?", "answer": "It is."}
    write_rows(folder / "mapped.jsonl", [asked] * 2)
    write_rows(folder / "plain.jsonl", [{"prompt": "Is it on?", "completion": "It is."}] * 2)
    fields = ("--fields", "prompt=question,completion=answer", "--validation", "0")
    train = (
        "train",
        "--model",
        "tiny",
        "--device",
        "cpu",
        "--data",
        "mapped.jsonl",
        "--steps",
        "1",
    )
    assert cli(*train, *fields, "--output", "mapped", "-q").code == 0
    scored = [
        cli("eval", "mapped", "--data", f"{name}.jsonl", "--json", "-q").out
        for name in ("mapped", "plain")
    ]
    assert scored[0] == scored[1]
    assert cli("eval", "mapped", "--data", "absent.jsonl", "-q").code == 4


def test_evaluation(run: Path, cli: Cli) -> None:
    called = cli("eval", run, "--data", "few.jsonl", "--json", "--quiet")
    assert (called.code, called.err) == (0, "")
    scores = json.loads(called.out)
    assert scores.keys() == {"base", "tuned"}
    assert scores["tuned"]["loss"] < scores["base"]["loss"]
    for found in scores.values():
        assert found["rows"] == 6
        assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    table = cli("eval", run, "--data", "few.jsonl", "--exact-match", "--verbose")
    assert "exact match" in table.out
    assert "Opened" in table.err
    for title in ("token F1", "ROUGE-L"):
        assert title in table.out
    assert "JSON" not in table.out  # none is expected
    folder = Path("scored")
    folder.mkdir()
    for name in ("few.jsonl", "test.jsonl", "valid.jsonl"):
        shutil.copy("few.jsonl", folder / name)
    scores = json.loads(cli("eval", run, "--data", folder, "--json", "--quiet").out)
    assert scores["tuned"]["rows"] == 18


def test_rows_are_shown_with_the_answers_and_losses_of_both(run: Path, cli: Cli) -> None:
    whole = json.loads(cli("eval", run, "--data", "few.jsonl", "--exact-match", "--json", "-q").out)
    found = json.loads(cli("eval", run, "--data", "few.jsonl", "--show", "9", "--json", "-q").out)
    examples = found.pop("examples")
    assert found["tuned"]["loss"] == whole["tuned"]["loss"]
    assert found["tuned"]["exact_match"] is None
    rows = lines(EXAMPLES / "home_commands.jsonl")[:6]
    assert [row["place"] for row in examples] == [f"few.jsonl:{line}" for line in range(1, 7)]
    for row, example in zip(rows, examples, strict=True):
        user, assistant = (turn["content"] for turn in row["messages"][-2:])
        assert user in example["input"]
        assert assistant not in example["input"]
        assert example["expected"] == assistant
        assert example["losses"]["tuned"] < example["losses"]["base"]
    for name in ("base", "tuned"):
        asked = generated(cli, run, [row["messages"][-2]["content"] for row in rows[:1]],
                          *(["--base"] if name == "base" else []))  # fmt: skip
        assert asked[0].startswith(examples[0]["answers"][name][:8])
        exact = [row["answers"][name].strip() == row["expected"].strip() for row in examples]
        assert sum(exact) / 6 == whole[name]["exact_match"]
        losses = [row["losses"][name] for row in examples]
        assert min(losses) <= whole[name]["loss"] <= max(losses)

    text = cli("eval", run, "--data", "few.jsonl", "--show", "1").out
    assert all(part in text for part in ("few.jsonl:1", "input:", "expected:", "tuned (loss "))
    assert "few.jsonl:2" not in text
    assert "<|im_start|>" in examples[0]["input"]
    assert "<|im_start|>" not in text, "tokens without a text of their own are for --json"


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    """A run of another method over the same base."""
    short = [*LEARN[:-2], "--method", "norm", "--steps", "2"]
    called = call(*short, "--output", "other", cwd=folder)
    assert called.code == 0, called.err
    return folder / "other"


def test_runs_over_one_base_are_used_together(run: Path, other: Path, cli: Cli) -> None:
    prompts = held_out_prompts(2)
    asked = [item for prompt in prompts for item in ("-p", prompt)]
    called = cli("generate", run, other, *asked, "--max-tokens", str(LONGEST), "--json", "-q")
    assert (called.code, called.err) == (0, "")
    each = {path: generated(cli, path, prompts) for path in (run, other)}
    assert json.loads(called.out) == [
        {"run": str(path), "prompt": prompt, "text": each[path][index]}
        for index, prompt in enumerate(prompts)
        for path in (run, other)
    ]
    plain = cli("generate", run, other, *asked[:2], "--max-tokens", str(LONGEST))
    assert plain.out == f"{run}: {each[run][0]}\n{other}: {each[other][0]}\n"

    scored = cli("eval", run, other, "--data", "few.jsonl", "--json", "-q", "--exact-match")
    scores = json.loads(scored.out)
    assert list(scores) == ["base", str(run), str(other)]

    for name in ("base", "own"):  # what the base model and a run's own adapter go by
        shutil.copytree(other, name)
    named = cli("eval", run, "base", "own", "--data", "few.jsonl", "--json", "-q")
    assert list(json.loads(named.out)) == ["base", str(run), "./base", "own"]
    assert json.loads(named.out)["base"]["loss"] == scores["base"]["loss"]
    called = cli("eval", "base", Path("base").absolute(), "--data", "few.jsonl")
    assert "base is given twice" in called.err
    for name in ("base", "own"):
        shutil.rmtree(name)
    for path in (run, other):
        alone = cli("eval", path, "--data", "few.jsonl", "--json", "-q", "--exact-match")
        expected = _measured(json.loads(alone.out)["tuned"])
        assert _measured(scores[str(path)]) == pytest.approx(expected, rel=1e-4)


def _measured(scores: dict[str, Any]) -> dict[str, float]:
    absent = {"json_valid", "json_equal", "labels", "rewards"}
    assert {name for name, value in scores.items() if value is None} == absent
    return {name: value for name, value in scores.items() if value is not None}


def test_runs_that_do_not_go_together_are_refused(
    run: Path, other: Path, folder: Path, cli: Cli
) -> None:
    narrow = [*LEARN[:-2], "--steps", "1", "--quantization", "int8"]
    assert cli(*narrow, "--output", "narrow").code == 0
    called = cli("generate", run, folder / "narrow", "-p", "Hello")
    assert called.code == 2
    assert "with quantization int8" in called.err
    called = cli("generate", run, other, "--base", "-p", "Hello")
    assert called.code == 2
    assert "give one REF" in called.err
    called = cli("eval", run, other, run, "--data", "few.jsonl")
    assert called.code == 2
    assert f"{run} is given twice" in called.err


def test_generation_is_repeatable_and_plain_where_no_json_is_asked(run: Path, cli: Cli) -> None:
    prompts = held_out_prompts(2)
    texts = generated(cli, run, prompts)
    asked = [item for prompt in prompts for item in ("-p", prompt)]
    plain = cli("generate", run, *asked, "--max-tokens", str(LONGEST))
    assert plain.out == "".join(f"{text}\n" for text in texts)
    drawn = [generated(cli, run, prompts, "--temperature", "1", "--seed", s) for s in "112"]
    assert drawn[0] == drawn[1] != drawn[2]
    assert generated(cli, run, prompts, "--base") != texts


def test_a_checkpoint_that_was_to_go_goes_where_a_run_goes_on(run: Path, cli: Cli) -> None:
    shutil.copytree(run, "behind", symlinks=True)
    checkpoints = Path("behind", "checkpoints")
    kept = sorted(path.name for path in checkpoints.iterdir())
    shutil.copytree(checkpoints / kept[1], checkpoints / "step-000001")  # killed before it went

    called = cli("train", "--resume", "--output", "behind", "-q")

    assert called.code == 0, called.err
    assert sorted(path.name for path in checkpoints.iterdir()) == kept
