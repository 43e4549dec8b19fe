"""What a session and the commands that open one leave open when they are done: nothing."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest
from rows import Cli, chat, write_rows

from conformance.cases import CASES
from conformance.sessions import ROW, Bench, rows, step
from edgetune.backend import GenerateOptions
from edgetune.errors import ModelError
from edgetune.generation import generate
from edgetune.model import LocalModel

LORA = CASES[0]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists open files so")


def open_files() -> Counter[str]:
    """Return the files that this process has open, those that have no name any more too."""
    found: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found[str(link.readlink())] += 1
    return Counter({name: count for name, count in found.items() if name.startswith("/")})


@pytest.mark.parametrize("place", ["streamed", "offloaded"])
def test_a_session_that_is_closed_has_no_file_open(
    place: str, bench: Bench, llama: LocalModel
) -> None:
    knobs = bench.ways.places[place]
    for _ in range(2):  # the first one loads libraries
        gc.collect()
        before = open_files()
        with closing(bench.backend.open(bench.plan(LORA, llama, **knobs).spec, llama)) as session:
            step(session, rows())
            list(generate(session, [ROW[:4]], GenerateOptions(max_tokens=3)))
    assert not open_files() - before


@pytest.fixture
def run(bench: Bench, tmp_path: Path, cli: Cli) -> str:
    """A run whose base is streamed from disk."""
    called = cli(
        "train", "--model", "tiny", "--data", write_rows(tmp_path / "rows.jsonl"), "--output",
        "run", "--steps", "1", "--placement", "disk", "--validation", "0", "--device",
        bench.ways.device, "--no-verdict", "--samples", "0", "--quantization", "none",
    )  # fmt: skip
    assert called.code == 0, called.err
    return "run"


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def test_commands_leave_no_file_open(run: str, cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "few.jsonl", [chat("hello", "hi")])
    prompts = tmp_path / "prompts"
    prompts.write_text("hello\n")
    commands = (
        ("generate", run, "-p", "hello", "--max-tokens", "2"),
        ("eval", run, "--data", "few.jsonl"),
        ("generate", run, f"{run}/adapter", "-p", "hello", "--max-tokens", "2", "--json"),
        ("export", run, "--to", "hf", "--output", "out"),
    )
    for command in commands:
        cli(*command)  # the first time libraries are loaded
        if command[0] == "export":
            continue
        gc.collect()
        before = open_files()
        called = cli(*command)
        assert called.code == 0, called.err
        assert not open_files() - before, command


def test_an_adapter_that_cannot_be_taken_leaves_no_file_open(
    bench: Bench, llama: LocalModel
) -> None:
    from edgetune.adapters import LoadedAdapter
    from edgetune.workflows.opening import open_adapted

    knobs = bench.ways.places["streamed"]
    plan = bench.plan(LORA, llama, **knobs)
    adapter = LoadedAdapter(method=plan.choice.method, tensors={}, base=None)
    for _ in range(2):
        gc.collect()
        before = open_files()
        with pytest.raises(ModelError, match="missing"):
            open_adapted(plan, llama, adapter)
    assert not open_files() - before
