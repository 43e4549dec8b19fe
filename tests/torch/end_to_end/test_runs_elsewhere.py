"""What a run of the built-in model hands over says the same in transformers and in PEFT."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from rows import Cli, call, write_rows
from tiny_runs import LEARN, LONGEST, exported, generated, held_out_prompts, lines
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgetune.backend import GenerateOptions
from edgetune.errors import CheckFailedError
from edgetune.exporters import Exported, ExportRequest
from edgetune.exporters.mlx import export_mlx
from edgetune.generation import generate
from edgetune.model import open_model
from edgetune.workflows import exporting
from edgetune.workflows.exporting import CHECK_ROWS, ExportOptions
from edgetune.workflows.opening import open_planned
from edgetune.workflows.references import open_references


def in_format(run: Path, dtype: str) -> Path:
    """Return a run whose products are in a format, whichever is this processor's own."""
    if open_planned(run)[1].choice.compute_dtype == dtype:
        return run
    other = run.parent / dtype
    if not other.exists():
        called = call(*LEARN, "--compute-dtype", dtype, "--output", other.name, cwd=run.parent)
        assert called.code == 0, called.err
    return other


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


def test_another_file_is_checked_on_whatever_the_run_had(
    folder: Path, cli: Cli, tmp_path: Path
) -> None:
    """Neither the run's validation file nor the names of its columns belong to another file."""
    held, another = folder / "held.jsonl", write_rows(tmp_path / "another.jsonl")
    asked = [{"q": f"Is {number} on?", "a": "It is."} for number in range(9)]
    write_rows(folder / "asked.jsonl", asked[3:])
    write_rows(held, asked[:3])
    fields = ("--fields", "prompt=q,completion=a", "--validation-data", held, "--steps", "1")
    train = ("train", "--model", "tiny", "--device", "cpu", "--data", "asked.jsonl", *fields)
    called = cli(*train, "--output", "apart", "--no-verdict", "--samples", "0", "-q")
    assert called.code == 0, called.err

    merge = ("export", "apart", "--to", "hf", "--json", "--output")
    checks = [json.loads(cli(*merge, tmp_path / "own").out)["check"]]
    held.unlink()
    gone = cli(*merge, tmp_path / "gone")
    other = cli(*merge, tmp_path / "other", "--data", another)
    assert other.code == 0, other.err
    checks.append(json.loads(other.out)["check"])

    assert [check["rows"] for check in checks] == [3, CHECK_ROWS]
    assert gone.code == 2
    assert f"{held} is not there. Give a file of rows: --data FILE" in gone.err


@pytest.mark.parametrize("refused", [False, True])
def test_a_quantized_export_is_noted_once_and_passes_on_what_is_said(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    made = folder / f"told-{refused}"
    shutil.copytree(run, made, symlinks=True)
    before = len(lines(made / "journal.jsonl"))

    def export(_: str, request: ExportRequest) -> Exported:
        if refused:
            raise CheckFailedError("not the same model")
        return replace(export_mlx(request), notes=("mind this",))

    monkeypatch.setattr(exporting, "export", export)
    options = ExportOptions(quantize="q8", check=False)
    if refused:
        with pytest.raises(CheckFailedError):
            exporting.export_run(str(made), "mlx", tmp_path / "q8", options)
    else:
        result = exporting.export_run(str(made), "mlx", tmp_path / "q8", options)
        assert result.exported.notes == ("mind this",)
    noted = lines(made / "journal.jsonl")[before:]
    exports = [line for line in noted if line["what"] == "exported"]
    assert [(line["output"], line.get("refused", False)) for line in exports] == [
        (str(tmp_path / "q8"), refused)
    ]
