"""Methods trained on the same rows in processes of their own, compared, and gone on with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from rows import Cli, write_rows

from edgetune.files import sha256_file


def test_methods_are_trained_compared_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli = Cli(capfd)
    write_rows(Path("rows.jsonl"))
    train = [
        "compare", "--methods", "lora,bitfit", "--data", "rows.jsonl", "--model", "tiny",
        "--device", "cpu", "--steps", "3", "--rank", "2", "--learning-rate", "0.01",
        "--micro-batch", "4", "--eval-every", "1", "--output", "all",
    ]  # fmt: skip
    called = cli(*train, "--json")
    assert called.code == 0, called.err
    lora, bitfit = json.loads(called.out)["runs"]
    assert (lora["method"], bitfit["method"]) == ("lora", "bitfit")
    for one in (lora, bitfit):
        assert one["steps"] == 3
        assert one["base_loss"] == lora["base_loss"]
        assert one["loss"] < one["base_loss"]
        assert one["problem"] == ""
        assert one["peak_bytes"] > 0 < one["seconds"]
        assert one["adapter_bytes"] == (tmp_path / "all" / one["name"] / "adapter" /
                                        "adapter_model.safetensors").stat().st_size  # fmt: skip
    plans = [line for line in called.err.splitlines() if line.startswith("Plan: ")]
    assert [line.split(",")[0] for line in plans] == ["Plan: lora of rank 2", "Plan: bitfit"]
    assert "Memory in training" not in called.err, "the whole plan is for -v"
    assert lora["planned_bytes"] != bitfit["planned_bytes"]

    weights = Path("all") / "lora" / "adapter" / "adapter_model.safetensors"
    before = sha256_file(weights)
    run = Path("all") / "lora"
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / "step-000003")
    journal = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(x for x in journal if "adapter written" not in x))
    again = cli(*train, "--json")
    assert again.code == 0, again.err
    assert "lora (1 of 2): resumes" in again.err
    assert "bitfit (2 of 2): trained already" in again.err
    assert sha256_file(weights) == before
    assert [one["loss"] for one in json.loads(again.out)["runs"]] == [lora["loss"], bitfit["loss"]]

    called = cli(
        "compare", "all/lora", "all/bitfit", "--held-out", "rows.jsonl", "--html", "page.html"
    )
    assert called.code == 0, called.err
    assert max(map(len, called.out.splitlines())) <= 80
    for text in ("all/lora", "all/bitfit", "forgets", "On the held-out rows: predicted"):
        assert text in called.out
    page = Path("page.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert page.count('<figure class="chart"') == 2
    held_out = called.out.split("On the held-out rows: predicted")[1]
    losses = {
        name: float(loss) for name, loss in re.findall(r"^(\S+) +([\d.]+)", held_out, re.MULTILINE)
    }
    assert losses.keys() == {"base", "all/lora", "all/bitfit"}
    assert max(losses, key=lambda name: losses[name]) == "base"
    other = cli(*train[:-1], "all", "--seed", "5")
    assert other.code == 2
    assert "a comparison with other settings" in other.err
