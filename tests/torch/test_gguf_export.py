"""``export --to gguf`` as a user calls it: checked in llama.cpp where that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from adapters import random_adapter
from rows import Cli, write_rows

from edgetune.adapters import save_adapter
from edgetune.exporters.gguf.client import Client
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.updates import Merge
from edgetune.methods.lora import Lora
from edgetune.model import open_model, resolve
from edgetune.workflows import exporting

CODE = """
import sys
from edgetune.cli import run
code = run(sys.argv[1:])
found = sorted(name for name in ("torch", "mlx") if sys.modules.get(name))
sys.exit(code or (f"imported {found}" if found else 0))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, and an adapter over the built-in model that changes its answers."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(folder / "rows.jsonl")
    shape = resolve("tiny").shape
    adapter = random_adapter(Lora(rank=4), shape)
    tensors = {name: values * np.float32(0.3) for name, values in adapter.tensors.items()}
    (folder / "adapter").mkdir()
    save_adapter(folder / "adapter", adapter.method, shape, tensors, base="tiny")
    return folder


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(folder)
    return Cli(capsys)


EXPORT = ("export", "adapter", "--model", "tiny", "--to")


@pytest.mark.parametrize("options", [(), ("--adapter",), ("--quantize", "q4_0")])
def test_a_file_is_checked_in_llama_cpp(cli: Cli, tmp_path: Path, options: tuple[str, ...]) -> None:
    file = tmp_path / "m.gguf"
    called = cli(*EXPORT, "gguf", *options, "--output", file, "--data", "rows.jsonl", "--json")
    assert called.code == 0, called.err
    found = json.loads(called.out)
    check = found["check"]

    assert found["file"] == str(file)
    assert found["same_tokens"] == check["rows"] > 0
    assert check["effect"] > 0.01
    if "--adapter" in options:
        assert found["own_difference"] is None
    elif options:
        assert 0 < found["own_difference"] < found["difference"]
        advised = any("q8_0 stays closer" in note for note in found["notes"])
        assert advised == (2 * found["same_text"] < check["rows"])
        return
    else:
        assert 0 < found["own_difference"] < 2e-2
        assert found["difference"] < 2e-2
    assert check["kl_mean"] < 1e-5
    assert found["same_text"] == check["rows"]


def test_a_file_that_llama_cpp_computes_otherwise_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unmerged(*arguments: object) -> object:
        return Merge(changes={})

    monkeypatch.setattr("edgetune.exporters.gguf.model_file.merge_of", unmerged)
    output = tmp_path / "m.gguf"
    called = cli(*EXPORT, "gguf", "--output", output, "--data", "rows.jsonl")

    assert called.code == 8
    assert "The merged model is not the one that was trained" in called.err
    assert "--no-check" in called.err
    assert not output.exists()


def test_where_llama_cpp_is_missing_the_user_is_told(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "client_is_here", lambda: False)
    called = cli(*EXPORT, "ollama", "--output", tmp_path / "home")

    assert called.code == 0, called.err
    said = "Not checked in llama.cpp, because xllamacpp is not installed: pip install xllamacpp"
    assert said in called.out
    assert f"ollama create home -f {tmp_path / 'home' / 'Modelfile'}" in called.out
    assert {path.name for path in (tmp_path / "home").iterdir()} == {
        "Modelfile",
        "home-Q4_K_M.gguf",
    }


@pytest.mark.parametrize("code", [0, 1])
def test_ollama_is_asked_to_create_the_model(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    program, log = tmp_path / "ollama", tmp_path / "log"
    program.write_text(f'#!/bin/sh\necho "$@" > {log}\necho no room >&2\nexit {code}\n')
    program.chmod(0o755)
    create = (*EXPORT, "ollama", "--create", "--no-check", "--output", tmp_path / "home")
    if not code:
        monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
        called = cli(*create)
        assert (called.code, "not on the PATH" in called.err) == (2, True)
        assert not (tmp_path / "home").exists()
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    called = cli(*create)

    assert log.read_text() == f"create home -f {tmp_path / 'home' / 'Modelfile'}\n"
    assert (tmp_path / "home" / "Modelfile").is_file()
    if code:
        assert (called.code, "failed: 'no room'" in called.err) == (2, True)
    else:
        assert "To run it: ollama run home" in called.out


@pytest.mark.parametrize("to", ["hf", "peft", "ollama"])
def test_only_gguf_takes_an_adapter_alone(cli: Cli, tmp_path: Path, to: str) -> None:
    called = cli(*EXPORT, to, "--adapter", "--output", tmp_path / "out")

    assert called.code == 2
    assert "--adapter is for --to gguf" in called.err


def test_an_unchecked_export_imports_no_framework(folder: Path, tmp_path: Path) -> None:
    command = [
        *EXPORT,
        "gguf",
        "--no-check",
        "--quantize",
        "q4_k_m",
        "--output",
        tmp_path / "m.gguf",
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, command)],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "m.gguf").is_file()


def test_a_run_over_a_gguf_base_is_exported_and_checked(cli: Cli, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    model_file(open_model("tiny"), Merge(changes={}), "q8_0").write(base)
    called = cli("export", "adapter", "--model", base, "--to", "gguf", "--output",
                 tmp_path / "m.gguf", "--data", "rows.jsonl", "--json")  # fmt: skip
    assert called.code == 0, called.err
    found = json.loads(called.out)

    assert found["same_tokens"] == found["check"]["rows"]
    assert found["check"]["kl_mean"] < 1e-5
    with Client(base, context=128) as client:
        assert client.tokens("Good morning!", special=False)
