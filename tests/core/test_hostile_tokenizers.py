"""Tokenizers that fail inside, or that are not the model's, are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rows import Cli, chat, write_rows

from edgetune.data import load_tokenizer
from edgetune.errors import ModelError
from edgetune.model import resolve

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the built-in model, in the folder of the command line."""
    monkeypatch.chdir(tmp_path)
    folder = resolve("tiny").folder
    assert folder is not None
    return Path(shutil.copytree(folder, "model"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def changed(model: Path, change: Change) -> None:
    file = model / "tokenizer.json"
    settings = json.loads(file.read_text("utf-8"))
    change(settings)
    file.write_text(json.dumps(settings), "utf-8")


def _hostile(settings: dict[str, Any]) -> None:
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    settings["pre_tokenizer"] = {
        "type": "Sequence", "pretokenizers": [split, settings["pre_tokenizer"]]
    }  # fmt: skip


def _broken(settings: dict[str, Any]) -> None:
    _hostile(settings)
    settings["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("


def _beyond(settings: dict[str, Any]) -> None:
    settings["model"]["vocab"]["zzz"] = 10**6


def _special_beyond(settings: dict[str, Any]) -> None:
    known = settings["added_tokens"][0]
    settings["added_tokens"].append({**known, "id": 5000, "content": "<image>", "special": True})


def test_an_expression_that_backtracks_forever(cli: Cli, model: Path) -> None:
    changed(model, _hostile)
    rows = write_rows(Path("rows.jsonl"), [chat("a" * 5000 + "!", "b")])
    called = cli("data", "check", rows, "--model", "./model")
    assert (called.code, called.out) == (5, "")
    assert "The model's tokenizer fails on this text" in called.err
    assert "hostile or damaged" in called.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_broken, "cannot be read: Oniguruma error"),
        (_beyond, "has tokens up to number 1000000, and the model has embeddings for"),
    ],
    ids=["an expression that is none", "a token beyond the embeddings"],
)
def test_a_tokenizer_that_cannot_be_the_models(
    cli: Cli, model: Path, change: Change, said: str
) -> None:
    changed(model, change)
    called = cli("data", "check", write_rows(Path("rows.jsonl")), "--model", "./model")
    assert (called.code, called.out) == (5, "")
    assert said in called.err


@pytest.mark.parametrize("number", [10**7, 2**31, 10**30])
@pytest.mark.parametrize("known", [True, False])
def test_a_token_with_a_high_number_takes_no_memory(
    model: Path, number: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def high(settings: dict[str, Any]) -> None:
        settings["model"]["vocab"] |= {"zzz": number, '": 10000000': 1020}

    changed(model, high)
    monkeypatch.setattr("edgetune.data.tokenizer._read", None)  # never comes to this
    with pytest.raises(ModelError, match=rf"tokenizer.json has a token with number {number}, and"):
        load_tokenizer(model, 1024 if known else None)
    (model / "vocab.json").write_text(json.dumps({"zzz": number}))
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=rf"vocab.json has a token with number {number}, and"):
        load_tokenizer(model, 1024 if known else None)


def test_a_text_that_looks_like_a_high_number_is_one_token(model: Path) -> None:
    def text(settings: dict[str, Any]) -> None:
        vocabulary = settings["model"]["vocab"]
        del vocabulary[next(x for x, number in vocabulary.items() if number == 1020)]
        vocabulary[": 100000000"] = 1020
        settings["model"]["merges"] = []
        settings["truncation"] = {
            "direction": "Right", "max_length": 10**12, "strategy": "LongestFirst", "stride": 0
        }  # fmt: skip

    changed(model, text)
    assert len(load_tokenizer(model, 1024)) == 1024


def test_a_file_that_is_far_too_large_is_no_tokenizer(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.data.token_numbers.LARGEST", 1000)
    with pytest.raises(ModelError, match=r"tokenizer.json is larger than 1000 bytes"):
        load_tokenizer(model)


def test_special_tokens_beyond_the_embeddings_are_refused_where_they_are_used(
    cli: Cli, model: Path
) -> None:
    plain = load_tokenizer(model).fingerprint
    known = resolve("./model").shape.vocabulary
    assert load_tokenizer(model, known).fingerprint == plain
    changed(model, _special_beyond)
    assert cli("data", "check", write_rows(Path("rows.jsonl")), "--model", "./model").code == 0

    tokenizer = load_tokenizer(model, known)
    assert tokenizer.encode("Turn on the lamp.")
    (beyond,) = load_tokenizer(model).encode("<image>")
    assert beyond >= known
    with pytest.raises(ModelError, match=rf"'<image>', which is token {beyond} .* for {known} tok"):
        tokenizer.encode("What is in <image>?")
    assert load_tokenizer(model).fingerprint != tokenizer.fingerprint
