"""``edgetune inspect`` and ``similar``, and a prompt that starts from another task's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import Cli, call, write_rows

from edgetune.adapters import load_adapter, save_adapter
from edgetune.data import load_tokenizer
from edgetune.methods import build
from edgetune.methods.prompt import NAME
from edgetune.model import open_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "home_commands.jsonl"
LEARN = ("--device", "cpu", "--data", "rows.jsonl", "--steps", "2", "--validation", "0")
PROMPT = ("--method", "prompt", "--prompt-length", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows and a run of a prompt that starts from two labels."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(
        folder / "rows.jsonl", [json.loads(x) for x in EXAMPLES.read_text().splitlines()[:8]]
    )
    start = (
        "--prompt-initial",
        "labels",
        "--prompt-text",
        "kitchen, lamp",
        "--learning-rate",
        1e-5,
    )
    asked = ("train", "--model", "tiny", *LEARN, *PROMPT, *map(str, start), "--output", "prompt")
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


def test_a_prompt_is_near_to_the_words_that_it_starts_from(cli: Cli) -> None:
    model = open_model("tiny")
    tokenizer = load_tokenizer(model.folder)
    found = _json(cli, "inspect", "prompt", "--words", "2")

    assert [len(row["nearest"]) for row in found["prompt"]] == [2] * 4
    for row, label in zip(found["prompt"], ("kitchen", "lamp"), strict=False):
        pieces = tokenizer.encode(label)
        named = {word["text"] for word in row["nearest"]}
        # the mean of several pieces is near to each of them
        assert named & {tokenizer.decode([piece]) for piece in pieces}
    shown = cli("inspect", "prompt")
    assert len(shown.out.splitlines()) == 5


def test_a_task_starts_from_the_prompt_of_another_one(cli: Cli, tmp_path: Path) -> None:
    target = ("--from", "prompt", "--output", tmp_path / "target", "--learning-rate", "1e-6")
    called = cli("train", *target, *LEARN)
    assert called.code == 0, called.err
    method, shape = build("prompt", {"prompt_length": 7}), open_model("tiny").shape
    noise = np.random.default_rng(0).normal(0, 1, (7, shape.hidden_size)).astype(np.float32)
    save_adapter(tmp_path / "noise", method, shape, {NAME: noise}, base="tiny")
    names = [str(tmp_path / "target"), str(tmp_path / "noise"), "prompt"]
    found = _json(cli, "similar", *names)

    cosines = np.array(found["cosines"])
    np.testing.assert_allclose(np.diag(cosines), 1)
    np.testing.assert_allclose(cosines, cosines.T)
    assert found["nearest"] == "prompt"
    assert cosines[0, 2] > 0.99
    assert abs(cosines[0, 1]) < 0.5
    source = load_adapter(Path("prompt/adapter"), shape).tensors[NAME]
    started = load_adapter(tmp_path / "target" / "adapter", shape).tensors[NAME]
    np.testing.assert_allclose(started, source, atol=1e-4)
    assert f"train --from {found['nearest']}" in cli("similar", *names).out


def test_updates_are_told_by_block_and_target(cli: Cli, tmp_path: Path) -> None:
    method, model = build("lora", {"rank": 2, "targets": ("q_proj", "mlp")}), open_model("tiny")
    draw = np.random.default_rng(0)
    tensors = {
        x.name: draw.normal(size=x.shape).astype(np.float32) for x in method.tensors(model.shape)
    }
    save_adapter(tmp_path / "lora", method, model.shape, tensors, base="tiny")
    found = _json(cli, "inspect", tmp_path / "lora")

    assert len(found["updates"]) == 4 * model.shape.layers
    assert all(len(x["values"]) == 2 for x in found["updates"])
    shown = cli("inspect", tmp_path / "lora").out
    assert all(word in shown for word in ("self_attn.q_proj", "mlp.down_proj", "block 0"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("similar", "prompt"), "at least two"),
        (("inspect", "tiny"), "tiny is a model"),
    ],
)
def test_what_cannot_be_seen_is_refused(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    called = cli(*arguments)
    assert called.code == 2
    assert words in called.err
