"""The main job in real processes on the built-in model, interrupted in every way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import psutil
import pytest
import torch
from rows import Cli, call, chat, finish, start, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgetune.backend import GenerateOptions
from edgetune.files import sha256_file
from edgetune.generation import generate
from edgetune.model import open_model
from edgetune.workflows.opening import open_planned
from edgetune.workflows.references import open_references

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 8
LEARN = ("train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl",
         "--steps", str(STEPS), "--learning-rate", "0.01", "--eval-every", "2",
         "--save-every", "3", "--seed", "5")  # fmt: skip
CHECKPOINT = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors",
              "state.json"]  # fmt: skip
LONGEST = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, in which runs are made."""
    folder = tmp_path_factory.mktemp("work")
    rows = lines(EXAMPLES / "home_commands.jsonl")
    write_rows(folder / "rows.jsonl", rows[:40])
    write_rows(folder / "few.jsonl", rows[:6])
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run that was never interrupted."""
    called = call(*LEARN, "--output", "whole", cwd=folder)
    assert called.code == 0, called.err
    kept = r" \(the checkpoint after step \d+: validation loss [\d.]+, the base's [\d.]+\)"
    last = called.out.splitlines()[-1]
    assert re.fullmatch(rf"The adapter is in {Path('whole') / 'adapter'}{kept}", last)
    return folder / "whole"


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(folder)
    return Cli(capsys)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def learned(run: Path) -> dict[str, Any]:
    """Return everything that a run came to, but what differs by the clock and the machine."""
    volatile = {"seconds", "peak_bytes"}
    return {
        "metrics": [
            {k: v for k, v in line.items() if k not in volatile}
            for line in lines(run / "metrics.jsonl")
        ],
        **{
            str(file.relative_to(run)): sha256_file(file)
            for part in ("adapter", "checkpoints")
            for file in sorted((run / part).rglob("*"))
            if file.is_file()
        },
    }


def wait_for_steps(run: Path, count: int) -> None:
    """Wait until a run has logged some steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count('"step", ') >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} took no {count} steps")


def wait_for(path: Path) -> None:
    """Wait until a file or folder is there."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was never made"
        time.sleep(0.01)


def resume(run: Path, *more: str | Path) -> None:
    called = call("train", "--resume", "--output", run.name, *more, cwd=run.parent)
    assert called.code == 0, called.err


def test_a_run_folder_is_complete(run: Path) -> None:
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {"plan.yaml", "receipt.json", "metrics.jsonl", "journal.jsonl", "memory.json", "report.html",
                     "checkpoints", "adapter", "verdict.json", "samples.json"}  # fmt: skip
    checkpoints = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert checkpoints[0] == "best"
    assert checkpoints[-1] == f"step-{STEPS:06}"
    for name in checkpoints[1:]:
        assert sorted(p.name for p in (run / "checkpoints" / name).iterdir()) == CHECKPOINT
    assert sorted(path.name for path in (run / "adapter").iterdir()) == CHECKPOINT[:2]
    assert json.loads((run / "receipt.json").read_text())["rows_read"] == 40
    memory = json.loads((run / "memory.json").read_text())
    assert memory.keys() == {
        "planned_bytes",
        "peak_bytes",
        "budget_bytes",
        "exceeded",
        "phases",
        "pilot",
    }
    assert 0 < memory["pilot"]["peak_bytes"] <= memory["peak_bytes"]
    assert memory["exceeded"] is (memory["peak_bytes"] > memory["planned_bytes"])
    best = (run / "checkpoints" / "best").resolve() / "adapter_model.safetensors"
    assert best.read_bytes() == (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_log_has_every_step_and_evaluation(run: Path) -> None:
    found = [(line["event"], line["step"]) for line in lines(run / "metrics.jsonl")]
    expected = [("eval", 0)]
    for step in range(1, STEPS + 1):
        expected += [("step", step)] + [("eval", step)] * (step % 2 == 0)
    assert found == expected
    journal = lines(run / "journal.jsonl")
    assert {"planned", "pilot", "best checkpoint", "memory measured", "adapter written"} == {
        line["what"] for line in journal
    } - {"over the plan", "rates corrected"}  # as the machine is busy
    assert all(line["because"] for line in journal)


def test_it_learns(run: Path) -> None:
    losses = [line["loss"] for line in lines(run / "metrics.jsonl") if line["event"] == "eval"]
    assert losses[-1] < 0.8 * losses[0]


def test_one_seed_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", lines(run.parent / "rows.jsonl"))
    called = call(*LEARN, "--output", "again", cwd=tmp_path)
    assert called.code == 0, called.err
    assert learned(tmp_path / "again") == learned(run)


def test_another_seed_gives_others(run: Path, cli: Cli, tmp_path: Path) -> None:
    other = cli(*LEARN[:-1], "6", "--output", tmp_path / "other", "--quiet")
    assert (other.code, other.err) == (0, "")
    assert learned(tmp_path / "other")["metrics"] != learned(run)["metrics"]


def test_interrupted_and_resumed_is_uninterrupted(run: Path, folder: Path, cli: Cli) -> None:
    process = start(*LEARN, "--output", "stopped", cwd=folder)
    wait_for_steps(folder / "stopped", 2)
    second = cli("train", "--resume", "--output", "stopped")
    assert second.code == 2
    assert "Another process is at work in stopped" in second.err
    process.send_signal(signal.SIGINT)
    stopped = finish(process)
    assert stopped.code == 6, stopped.err
    assert stopped.out == ""
    last = stopped.err.splitlines()[-1]
    step = re.fullmatch(rf"Stopped after step (\d) of {STEPS}\. Continue with: (.*)", last)
    assert step is not None, stopped.err
    assert step[2] == "edgetune train --resume --output stopped"
    assert (folder / "stopped" / "checkpoints" / f"step-{int(step[1]):06}").is_dir()
    refused = cli("generate", "stopped", "-p", "hello")
    assert refused.code == 2
    assert step[2] in refused.err

    process = start(*step[2].split()[1:], cwd=folder)
    wait_for_steps(folder / "stopped", int(step[1]) + 1)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert finish(process).code in {6, 130}
    resume(folder / "stopped")
    assert learned(folder / "stopped") == learned(run)
    what = [line["what"] for line in lines(folder / "stopped" / "journal.jsonl")]
    assert what.count("resumed") == 2
    assert "ended early" in what


def test_killed_moved_and_resumed_is_uninterrupted(run: Path, tmp_path: Path, cli: Cli) -> None:
    data = write_rows(tmp_path / "rows.jsonl", lines(run.parent / "rows.jsonl"))
    process = start(*LEARN, "--output", "killed", cwd=tmp_path)
    wait_for_steps(tmp_path / "killed", 4)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    moved = data.rename(tmp_path / "moved.jsonl")
    killed = tmp_path / "killed"
    lost = cli("train", "--resume", "--output", killed)
    assert lost.code == 2
    assert f"The rows of the run are not at {data} any more" in lost.err
    rows = lines(moved)
    changed = write_rows(tmp_path / "changed.jsonl", [*rows[1:], chat("other", "row")])
    other = cli("train", "--resume", "--output", killed, "--data", changed)
    assert other.code == 2
    assert "The data changed" in other.err
    small = cli("train", "--resume", "--output", killed, "--data", moved, "--memory", "50MB")
    assert small.code == 3
    assert "This run needs" in small.err
    assert "--memory allows 50.0 MB" in small.err
    plan = (killed / "plan.yaml").read_text()
    (killed / "plan.yaml").write_text(re.sub("limit_bytes: null", "limit_bytes: 200000000", plan))
    beyond = call("train", "--resume", "--output", "killed", "--data", moved, cwd=tmp_path)
    assert beyond.code == 7
    assert "the limit is 200 MB" in beyond.err
    resume(killed, "--data", "moved.jsonl", "--memory", "3GB")
    assert learned(killed) == learned(run)


@pytest.mark.skipif(os.name != "posix", reason="a command has no parent here")
@pytest.mark.parametrize(("rows", "name"), [(1, "SIGKILL"), (4, "SIGSEGV")])
def test_a_worker_that_dies_has_a_successor(folder: Path, rows: int, name: str) -> None:
    command = (*LEARN[:7], "--compute-dtype", "float32", "--micro-batch", str(rows), "--steps",
               "8", "--save-every", "1", "--keep", "9", "--validation", "0")  # fmt: skip
    whole, killed = folder / f"whole-{rows}", folder / f"killed-{rows}"
    process = start(*command, "--output", killed.name, cwd=folder)
    wait_for(killed / "checkpoints" / "step-000001")
    psutil.Process(process.pid).children()[0].send_signal(getattr(signal, name))
    ended = finish(process)
    assert ended.code == 0, ended.err
    (note,) = [x for x in lines(killed / "journal.jsonl") if x["what"].startswith("smaller")]
    assert note["rows"] == max(1, rows // 2)
    assert f"({name})" in note["because"]
    assert call(*command, "--output", whole.name, cwd=folder).code == 0
    if rows == 1:
        assert learned(killed) == learned(whole)
    for one, other in zip(
        lines(whole / "metrics.jsonl"), lines(killed / "metrics.jsonl"), strict=True
    ):
        assert (other["step"], other["loss"]) == (one["step"], pytest.approx(one["loss"], abs=1e-5))


def test_a_finished_run_stays_as_it_is(run: Path, cli: Cli) -> None:
    before = learned(run)
    called = cli("train", "--resume", "--output", run)
    assert called.code == 0
    assert f"Resuming after step {STEPS} of {STEPS}" in called.err
    assert learned(run) == before


def test_json_and_verbosity_of_training(cli: Cli, tmp_path: Path) -> None:
    short = [*LEARN[:7], "--steps", "2"]
    told = cli(*short, "--output", tmp_path / "told", "--json")
    result = json.loads(told.out)
    assert result.keys() == {"run", "kept", "cautions", "adapter", "report", "steps", "loss", "peak_bytes", "planned_bytes",
                             "base_validation_loss", "validation_loss", "rewinds",
                             "pilot", "verdict"}  # fmt: skip
    assert "pilot: measured" in told.err
    assert result["steps"] == 2
    assert result["validation_loss"] < result["base_validation_loss"]
    assert f"before training: validation loss {result['base_validation_loss']:.4f}" in told.err
    assert re.search(r"peak [\d.]+/[\d.]+ [MG]B", told.err)
    assert Path(result["adapter"]).is_dir()
    assert "step 2/2" in told.err
    assert "checkpoint saved" not in told.err
    more = cli(*short, "--output", tmp_path / "more", "--verbose")
    assert "step 2: checkpoint saved" in more.err
    quiet = cli(*short, "--output", tmp_path / "quiet", "--json", "--quiet")
    assert quiet.err == ""
    assert json.loads(quiet.out)["loss"] == result["loss"]


def test_a_run_that_runs_away_ends_with_a_kind_of_its_own(cli: Cli, tmp_path: Path) -> None:
    short = [*LEARN[:7], "--steps", "6", "--eval-every", "6", "--learning-rate", "1e4"]
    ended = cli(*short, "--output", tmp_path / "run", "--json")
    error = json.loads(ended.out)["error"]
    assert (ended.code, error["exit_code"], error["kind"]) == (8, 8, "diverged")
    assert ended.err.count("with half the learning rate") == 3
    assert not (tmp_path / "run" / "adapter").exists()
    again = cli("train", "--resume", "--output", tmp_path / "run", "--strict")
    assert again.code == 8
    assert "with half the learning rate" not in again.err


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


def held_out_prompts(count: int) -> list[str]:
    rows = lines(EXAMPLES / "home_commands_heldout.jsonl")[:count]
    return [row["messages"][0]["content"] for row in rows]


def generated(cli: Cli, run: Path, prompts: list[str], *more: str) -> list[str]:
    asked = [item for prompt in prompts for item in ("-p", prompt)]
    called = cli("generate", run, *asked, "--max-tokens", str(LONGEST), "--json", "-q", *more)
    assert (called.code, called.err) == (0, "")
    answers = json.loads(called.out)
    assert [answer["prompt"] for answer in answers] == prompts
    return [answer["text"] for answer in answers]


def test_generation_is_repeatable_and_plain_where_no_json_is_asked(run: Path, cli: Cli) -> None:
    prompts = held_out_prompts(2)
    texts = generated(cli, run, prompts)
    asked = [item for prompt in prompts for item in ("-p", prompt)]
    plain = cli("generate", run, *asked, "--max-tokens", str(LONGEST))
    assert plain.out == "".join(f"{text}\n" for text in texts)
    drawn = [generated(cli, run, prompts, "--temperature", "1", "--seed", s) for s in "112"]
    assert drawn[0] == drawn[1] != drawn[2]
    assert generated(cli, run, prompts, "--base") != texts


def in_format(run: Path, dtype: str) -> Path:
    """Return a run whose products are in a format, whichever is this processor's own."""
    if open_planned(run)[1].choice.compute_dtype == dtype:
        return run
    other = run.parent / dtype
    if not other.exists():
        called = call(*LEARN, "--compute-dtype", dtype, "--output", other.name, cwd=run.parent)
        assert called.code == 0, called.err
    return other


def exported(cli: Cli, run: Path, to: str, output: Path) -> Path:
    called = cli("export", run, "--to", to, "--output", output, "--json")
    assert called.code == 0, called.err
    assert to != "hf" or json.loads(called.out)["check"]["rows"] > 0
    return output


@torch.no_grad()
def test_transformers_says_the_same_from_the_merged_folder(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    run, prompts = in_format(run, "float32"), held_out_prompts(20)
    merged = exported(cli, run, "hf", tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    found = []
    for prompt in prompts:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
        )
        answer = model.generate(**asked, max_new_tokens=LONGEST, do_sample=False)
        new = answer[0, asked["input_ids"].shape[1] :]
        found.append(tokenizer.decode(new, skip_special_tokens=True))
    assert found == generated(cli, run, prompts)


@torch.no_grad()
def test_in_bfloat16_nothing_is_said_that_transformers_would_not_say(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    """A token may come second by what transformers' own logits in bfloat16 are off, twice."""
    run = in_format(run, "bfloat16")
    merged = exported(cli, run, "hf", tmp_path / "merged")
    wide, narrow = (
        AutoModelForCausalLM.from_pretrained(merged, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    (opened,) = open_references([str(run)])
    options = GenerateOptions(max_tokens=LONGEST)
    for prompt in held_out_prompts(10):
        asked = opened.tokenizer.prompt_tokens(prompt)
        said = [token for _, token in generate(opened.session, [asked], options)]
        row = torch.tensor([[*asked, *said[:-1]]])
        right, near = (model(row).logits[0, len(asked) - 1 :].float() for model in (wide, narrow))
        behind = right.amax(-1) - right.gather(-1, torch.tensor(said)[:, None])[:, 0]
        assert behind.max() <= 2 * (near - right).abs().max(), prompt


def peft_model(adapter: Path, dtype: torch.dtype) -> Any:
    base = AutoModelForCausalLM.from_pretrained(open_model("tiny").folder, dtype=dtype)
    return peft.PeftModel.from_pretrained(base, adapter).eval()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_computes_the_same_logits(run: Path, cli: Cli, tmp_path: Path) -> None:
    run = in_format(run, "float32")
    theirs = peft_model(exported(cli, run, "peft", tmp_path / "adapter"), torch.float32)
    (opened,) = open_references([str(run)])
    for prompt in held_out_prompts(5):
        tokens = opened.tokenizer.prompt_tokens(prompt)
        expected = theirs(torch.tensor([tokens])).logits[0].numpy()
        found = opened.session.logits(tokens)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        assert np.abs(opened.session.logits(tokens, adapter=None) - expected).max() > 1e-2


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_in_bfloat16_the_logits_are_nearer_than_pefts(
    run: Path, cli: Cli, tmp_path: Path, products: str
) -> None:
    """What is right is float32; over all logits, ours are no farther off than the peer's."""
    run = in_format(run, "bfloat16")
    adapter = exported(cli, run, "peft", tmp_path / "adapter")
    wide, narrow = (peft_model(adapter, dtype) for dtype in (torch.float32, torch.bfloat16))
    (opened,) = open_references([str(run)])
    ours, theirs = 0.0, 0.0
    for prompt in held_out_prompts(20):
        tokens = opened.tokenizer.prompt_tokens(prompt)
        right, near = (model(torch.tensor([tokens])).logits[0].double() for model in (wide, narrow))
        ours += float((torch.from_numpy(opened.session.logits(tokens)) - right).square().sum())
        theirs += float((near - right).square().sum())
    assert 0 < ours <= theirs, products


def test_an_export_is_never_written_over(run: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    called = cli("export", run, "--to", "hf", "--output", tmp_path)
    assert called.code == 2
    assert "Nothing is overwritten" in called.err
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]
