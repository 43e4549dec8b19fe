"""Exported GGUF files put to use again, by path and by the names that other tools have for them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import openai
import pytest
from rows import PAIRS, Cli, call, write_rows

LEARN = ("train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--steps", "2",
         "--learning-rate", "0.01", "--output", "run")  # fmt: skip
QUESTION = PAIRS[0][0]
LONGEST = ("--max-tokens", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its file in float32, and stores that have it too."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(folder / "rows.jsonl")
    assert call(*LEARN, cwd=folder).code == 0
    export = ("export", "run", "--quantize", "f32", "--no-check", "--output")
    models = folder / ".lmstudio" / "models"
    for to, output in (
        ("gguf", "home.gguf"),
        ("lmstudio", models / "me" / "home"),
        ("ollama", "home"),
    ):
        called = call(*export, output, "--to", to, cwd=folder)
        assert called.code == 0, called.err
    _created(folder / "home" / "home-F32.gguf", folder / ".ollama" / "models", "home")
    return folder


def _created(file: Path, store: Path, name: str) -> None:
    """Lay a file into Ollama's store, as ``ollama create`` does."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / name / "latest"
    for parent in (store / "blobs", manifest.parent):
        parent.mkdir(parents=True)
    shutil.copy(file, store / "blobs" / f"sha256-{digest}")
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return Cli(capsys)


def test_a_file_says_what_the_run_says_wherever_it_is(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"{QUESTION}\nAnd then?\n"
    said = []
    for name in ("run", "home.gguf", "lmstudio:me/home", "ollama:home"):
        monkeypatch.setattr("sys.stdin", StringIO(lines))
        called = cli("chat", name, *LONGEST, "-q")
        assert called.code == 0, called.err
        said.append(called.out)
    assert len(said[0].splitlines()) == 2
    assert said == said[:1] * 4


def test_an_adapter_over_a_file_is_chatted_with_beside_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = [name.replace("tiny", "home.gguf") for name in LEARN[:-1]]
    assert cli(*learn, "over").code == 0
    monkeypatch.setattr("sys.stdin", StringIO(f"{QUESTION}\n"))
    called = cli("chat", "over", "--compare", "--json", "-q", *LONGEST)
    assert called.code == 0, called.err
    answers = [json.loads(line) for line in called.out.splitlines()]
    assert [one["model"] for one in answers] == ["base", "over"]
    expected = cli("generate", "home.gguf", "-p", QUESTION, *LONGEST, "--json", "-q")
    assert answers[0]["text"] == json.loads(expected.out)[0]["text"]


def test_a_file_is_served(cli: Cli, folder: Path) -> None:
    expected = cli("generate", "run", "-p", QUESTION, *LONGEST, "--json", "-q")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetune", "serve", "ollama:home", "--port", "0", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    try:
        with openai.OpenAI(base_url=told["url"], api_key="none", max_retries=0) as client:
            found = client.chat.completions.create(
                model="ollama:home", messages=[{"role": "user", "content": QUESTION}], max_tokens=12
            )
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(60)
    assert told["models"] == ["ollama:home"]
    assert found.choices[0].message.content == json.loads(expected.out)[0]["text"]
