"""Small files of examples, and the command line called in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgetune.cli import run

PAIRS = [
    ("Turn on the lamp in the kitchen.", "set kitchen lamp on now"),
    ("Shut the garage door.", "set garage door closed now"),
    ("Please open the window of the study.", "set study window open now"),
    ("Put the heater of the attic at twenty degrees.", "set attic heater 20 now"),
    ("Could you switch off the radio in the bathroom?", "set bathroom radio off now"),
]


def chat(user: str, assistant: str) -> dict[str, Any]:
    """Return one row."""
    return {
        "messages": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": assistant},
        ]
    }


def write_rows(file: Path, rows: list[Any] | None = None) -> Path:
    """Write rows as JSON lines, 20 different chats if none are given, and return the file."""
    if rows is None:
        rows = [chat(f"{user} ({i})", answer) for i in range(4) for user, answer in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@dataclass(frozen=True)
class Called:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


class Cli:
    """Calls commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Capture what is printed."""
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Called:
        """Call one command."""
        self._capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return Called(code, out, err)


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start a command in a process of its own, where a deprecated call of ours is an error."""
    ours = ("edgetune", "edgetune_torch", "edgetune_profiles")
    strict = [f"-Werror::DeprecationWarning:{name}" for name in ours]
    return subprocess.Popen(
        [sys.executable, *strict, "-m", "edgetune", *map(str, arguments)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> Called:
    """Wait for a command to end."""
    out, err = process.communicate(timeout=240)
    return Called(process.returncode, out, err)


def call(*arguments: str | Path, cwd: Path) -> Called:
    """Call a command in a process of its own."""
    return finish(start(*arguments, cwd=cwd))
