"""A run of the built-in model that was never interrupted, in a folder with rows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rows import Cli, call, write_rows
from tiny_runs import EXAMPLES, LEARN, lines


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, in which runs are made."""
    folder = tmp_path_factory.mktemp("work")
    rows = lines(EXAMPLES / "home_commands.jsonl")
    write_rows(folder / "rows.jsonl", rows[:40])
    write_rows(folder / "few.jsonl", rows[:6])
    return folder


@pytest.fixture(scope="session")
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
