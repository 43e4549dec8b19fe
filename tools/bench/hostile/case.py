"""What one input is: how it is made, which command meets it, and what that must come to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "profiles" / "edgetune_profiles" / "tiny"

Arguments = tuple[str | bytes, ...]
Change = Callable[[Any], object]

LEARN: Arguments = (
    "train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--rank", "2",
    "--targets", "q_proj", "--layers", "1", "--context", "64", "--micro-batch", "2",
    "--accumulation", "1", "--steps", "3", "--eval-every", "1",
)  # fmt: skip
"""A run of a few seconds."""


@dataclass(frozen=True)
class Case:
    """An input: ``make`` prepares the folder ``here``, where ``rows.jsonl`` and ``run`` are."""

    about: str
    code: int
    make: Callable[[Path], Arguments]
    loads: Literal["data", "engine"] = "data"
    """Whose libraries its memory is above: those that read data, or those that compute."""
    room: int | None = None
    """Bytes that a file may have at most: a disk that is full."""
    during: Callable[[Path], object] | None = None
    """What happens once the run has its first metrics."""


def call(*arguments: str | bytes) -> Callable[[Path], Arguments]:
    """Return a case's preparation that prepares nothing."""
    return lambda here: arguments  # noqa: ARG005


def made(change: Callable[[Path], object], *arguments: str | bytes) -> Callable[[Path], Arguments]:
    """Return a preparation that changes the folder first."""

    def make(here: Path) -> Arguments:
        change(here)
        return arguments

    return make


def model(change: Callable[[Path], object], *arguments: str | bytes) -> Callable[[Path], Arguments]:
    """Return a preparation that gives a changed copy of the built-in model."""

    def make(here: Path) -> Arguments:
        change(Path(shutil.copytree(TINY, here / "model")))
        return (*arguments, "--model", "./model")

    return make


def json_file(name: str, change: Change) -> Callable[[Path], object]:
    """Return a change of a JSON file in a folder."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text("utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), "utf-8")

    return apply


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Return a change that writes a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda here: (here / name).write_bytes(data)


def chat(user: str, assistant: str = "yes") -> str:
    """Return a row as a line."""
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return json.dumps({"messages": turns}) + "\n"
