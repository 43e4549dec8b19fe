"""Runs, adapters over a base and models under one name each, and training that goes on from one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import Cli, call, write_rows
from safetensors.numpy import load_file, save_file

from edgetune.adapters import load_adapter
from edgetune.adapters.mlx_lm import PARTS
from edgetune.files import sha256_file
from edgetune.model import open_model
from edgetune.workflows.over import Over
from edgetune.workflows.references import new_plan, read_reference

EXAMPLES = Path(__file__).parents[2] / "examples" / "home_commands.jsonl"
ASKED = ("-p", "Turn on the lamp in the kitchen.", "--max-tokens", "12")
LEARN = ("--device", "cpu", "--data", "rows.jsonl", "--steps", "4", "--eval-every", "2",
         "--learning-rate", "0.01")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows and a run."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(
        folder / "rows.jsonl", [json.loads(x) for x in EXAMPLES.read_text().splitlines()[:30]]
    )
    called = call("train", "--model", "tiny", *LEARN, "--output", "run", cwd=folder)
    assert called.code == 0, called.err
    return folder


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(folder)
    return Cli(capsys)


@pytest.mark.parametrize("name", ["tiny", "run/adapter"])
def test_what_is_too_large_to_be_used_asks_for_memory_alone(cli: Cli, name: str) -> None:
    called = cli("generate", name, *ASKED, "--device", "cpu", "--memory", "20MB")
    assert called.code == 3
    told = re.search(r"--memory allows 20\.0 MB\. Let more be used: --memory (\d+)MB", called.err)
    assert told is not None, called.err
    assert "--method" not in called.err
    over = Over(device="cpu", memory=int(told[1]) * 10**6)
    assert new_plan(read_reference(name, over), over).memory.peak_bytes <= int(told[1]) * 10**6


def _as_mlx_lm(adapter: Path, target: Path) -> None:
    """Write an adapter as mlx-lm does."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    theirs = {ours: name for name, ours in PARTS.items()}
    tensors = {}
    for name, x in load_file(adapter / "adapter_model.safetensors").items():
        module, part = name.removeprefix("base_model.model.").split(".lora_")
        tensors[f"{module}.{theirs[f'lora_{part}']}"] = np.ascontiguousarray(x.T)
    target.mkdir()
    save_file(tensors, target / "adapters.safetensors")
    scale = config["lora_alpha"] / config["r"]
    described = {
        "fine_tune_type": "lora",
        "num_layers": 99,
        "lora_parameters": {"rank": config["r"], "scale": scale, "dropout": 0.0},
    }
    (target / "adapter_config.json").write_text(json.dumps(described))


def _evaluated(cli: Cli, *names: str) -> dict[str, Any]:
    called = cli("eval", *names, "--data", "rows.jsonl", "--json", "-q")
    assert called.code == 0, called.err
    found: dict[str, Any] = json.loads(called.out)
    return found


def test_an_adapter_over_its_base_is_its_run(cli: Cli) -> None:
    by_run, by_adapter = _evaluated(cli, "run"), _evaluated(cli, "run/adapter")

    # the rows go together in other numbers, and products may be in 16 bits
    assert by_adapter["tuned"]["loss"] == pytest.approx(by_run["tuned"]["loss"], rel=1e-3)
    assert by_adapter["base"]["loss"] == pytest.approx(by_run["base"]["loss"], rel=1e-3)
    texts = [cli("generate", name, *ASKED, "-q").out for name in ("run", "run/adapter")]
    assert texts[0] == texts[1]


def test_a_model_is_what_it_is_without_adapters(cli: Cli) -> None:
    assert list(_evaluated(cli, "tiny")) == ["base"]
    texts = [cli("generate", *named, *ASKED, "-q").out for named in (["tiny"], ["run", "--base"])]
    assert texts[0] == texts[1]


def test_an_adapter_of_mlx_lm_is_used_over_the_model_that_is_given(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    _as_mlx_lm(folder / "run" / "adapter", tmp_path / "theirs")
    name = str(tmp_path / "theirs")
    called = cli("generate", name, *ASKED)
    assert called.code == 2
    assert "does not say over which model" in called.err

    found = _evaluated(cli, "run/adapter", name, "--model", "tiny")
    assert found[name]["loss"] == pytest.approx(found["run/adapter"]["loss"], rel=1e-3)
    called = cli("export", name, "--model", "tiny", "--to", "peft", "--output", tmp_path / "peft")
    assert called.code == 0, called.err
    shape = open_model("tiny").shape
    exported = load_adapter(tmp_path / "peft", shape).tensors
    for tensor, values in load_adapter(folder / "run" / "adapter", shape).tensors.items():
        np.testing.assert_array_equal(exported[tensor], values)


def test_a_merge_of_an_adapter_is_checked_on_rows_that_are_given(cli: Cli, tmp_path: Path) -> None:
    asked = ("export", "run/adapter", "--to", "hf", "--output", tmp_path / "merged")
    assert "Give a file of rows" in cli(*asked).err
    called = cli(*asked, "--data", "rows.jsonl")
    assert called.code == 0, called.err
    assert "Checked on" in called.out
    merged, tuned = _evaluated(cli, str(tmp_path / "merged")), _evaluated(cli, "run")
    assert merged["base"]["loss"] == pytest.approx(tuned["tuned"]["loss"], rel=1e-2)


def _learned(run: Path) -> dict[str, Any]:
    return {
        str(file.relative_to(run)): sha256_file(file)
        for part in ("adapter", "checkpoints")
        for file in sorted((run / part).rglob("*"))
        if file.is_file()
    }


def test_a_training_goes_on_from_an_adapter(cli: Cli, folder: Path, tmp_path: Path) -> None:
    _as_mlx_lm(folder / "run" / "adapter", tmp_path / "theirs")
    sources = {"ours": ["run"], "folder": ["run/adapter", "--model", "tiny"],
               "theirs": [str(tmp_path / "theirs"), "--model", "tiny"]}  # fmt: skip
    for name, source in sources.items():
        called = cli("train", "--from", *source, *LEARN, "--keep", "0", "--output", name)
        assert called.code == 0, called.err
    shape = open_model("tiny").shape
    before = load_adapter(folder / "run" / "adapter", shape).tensors
    for name in sources:
        start = load_adapter(folder / name / "checkpoints" / "step-000000", shape).tensors
        for tensor, values in before.items():
            np.testing.assert_array_equal(start[tensor], values)
    after = [load_adapter(folder / name / "adapter", shape).tensors for name in sources]
    for tensor, values in before.items():
        assert not np.array_equal(after[0][tensor], values)
        np.testing.assert_array_equal(after[0][tensor], after[1][tensor])
        np.testing.assert_allclose(after[0][tensor], after[2][tensor], atol=1e-6)
    assert _evaluated(cli, "ours")["tuned"]["loss"] < _evaluated(cli, "run")["tuned"]["loss"]


def test_what_was_killed_before_its_first_checkpoint_begins_from_the_adapter_again(
    cli: Cli, folder: Path
) -> None:
    assert cli("train", "--from", "run", *LEARN, "--output", "killed").code == 0
    whole = _learned(folder / "killed")
    for name in ("adapter", "checkpoints"):
        shutil.rmtree(folder / "killed" / name)
    (folder / "killed" / "checkpoints").mkdir()
    (folder / "killed" / "metrics.jsonl").unlink()
    called = cli("train", "--resume", "--output", "killed")
    assert called.code == 0, called.err
    assert _learned(folder / "killed") == whole


@pytest.mark.parametrize(
    ("more", "because"),
    [
        (("--from", "run", "--rank", "3"), "--rank would make it a different adapter"),
        (("--from", "run", "--targets", "q_proj"), "--targets would make it a different adapter"),
        (("--from", "run", "--method", "dora"), "an adapter of the method lora"),
        (("--from", "tiny"), "is a model, not an adapter"),
        (("--from", "run", "--resume"), "--from"),
        (("--from", "absent"), "no run and no adapter absent"),
    ],
)
def test_what_would_not_be_that_adapter_is_refused(
    cli: Cli, more: tuple[str, ...], because: str
) -> None:
    called = cli("train", *more, "--data", "rows.jsonl", "--output", "never")
    assert called.code in {2, 5}
    assert because in called.err


def test_a_misspelt_run_is_not_looked_for_on_a_hub(cli: Cli) -> None:
    Path("runs/other").mkdir(parents=True)
    for name, near in (("rn", " Did you mean run?"), ("runs/othr", " Did you mean runs/other?"),
                       ("runs/something", "")):  # fmt: skip
        called = cli("generate", name, "--prompt", "Hi")
        assert called.code == 2
        assert (
            called.err.strip() == f"Error: There is no run, no adapter and no model {name}.{near}"
        )


def test_what_belongs_to_the_training_may_be_given(cli: Cli) -> None:
    more = ("--from", "run", "--dropout", "0.1", "--targets", "all-linear", "--dry-run", "--json")
    called = cli("train", *more, "--data", "rows.jsonl")
    assert called.code == 0, called.err
    assert json.loads(called.out)["choice"]["dropout"] == 0.1


@pytest.mark.parametrize(
    ("command", "because"),
    [
        (("generate", "run", "--model", "tiny"), "says its model itself"),
        (("generate", "run", "--memory", "3GB"), "is a run, which is used with the device"),
        (("eval", "run", "run/adapter", "run", "--data", "rows.jsonl"), "run is given twice"),
        (("generate", "."), "is neither a run's folder"),
        (("export", "tiny", "--to", "peft", "--output", "no"), "tiny is a model"),
    ],
)
def test_references_that_mean_nothing_are_refused(
    cli: Cli, command: tuple[str, ...], because: str
) -> None:
    called = cli(*command, *(ASKED if command[0] == "generate" else ()))
    assert called.code == 2
    assert because in called.err
