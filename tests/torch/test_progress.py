"""What a run shows on terminals of several widths, on one that can do nothing, and on a pipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rows import call, write_rows
from terminals import Terminal

STEPS = 3


def train(folder: Path, *more: str) -> list[str]:
    rows = write_rows(folder / "rows.jsonl").name
    fixed = "--steps", str(STEPS), "--rank", "2", "--samples", "0", "--validation", "0.1"
    return ["train", "--model", "tiny", "--data", rows, "--output", "run", *fixed, *more]


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_shows_what_goes_on_in_one_line(columns: int, tmp_path: Path) -> None:
    terminal = Terminal(*train(tmp_path), cwd=tmp_path, more={"COLUMNS": str(columns)})
    assert terminal.end() == 0
    lines = terminal.read.replace("\r\n", "\n").split("\n")
    drawn = [text for line in lines for text in line.split("\r\x1b[K")[1:]]
    for stage in ("Reading rows", "Trying the largest step", "Evaluating the base model",
                  f"Step 1 of {STEPS}", "Looking at what was learned"):  # fmt: skip
        assert any(text.startswith(stage) for text in drawn), stage
    assert any("Loading the model" in text for text in drawn)
    steps = [text for text in drawn if re.match(rf"step \d/{STEPS} ", text)]
    assert {text.split("/")[0] for text in steps} == {"step 1", "step 2", "step 3"}
    assert all(len(text) < columns for text in steps)
    assert all("loss" in text and "left" in text for text in steps)
    assert all(("smoothed" in text) is (columns == 120) for text in steps)
    assert all(("tokens/s" in text) is (columns == 120) for text in steps)


@pytest.mark.parametrize("place", ["dumb terminal", "pipe"])
def test_plain_lines_are_few_and_steer_nothing(place: str, tmp_path: Path) -> None:
    if place == "pipe":
        called = call(*train(tmp_path), cwd=tmp_path)
        read = called.err
    else:
        terminal = Terminal(*train(tmp_path), cwd=tmp_path, more={"TERM": "dumb"})
        terminal.end()
        read = terminal.read.replace("\r\n", "\n")
    assert "\r" not in read
    assert "\x1b" not in read
    lines = read.splitlines()
    assert lines.count("Reading rows") <= 1  # once if it is not quick
    assert lines.count("Loading the model") <= 1
    steps = [line for line in lines if re.match(rf"step \d/{STEPS} ", line)]
    assert len(steps) == STEPS
    assert re.fullmatch(
        rf"step 3/{STEPS}  loss [\d.]+, smoothed [\d.]+  [\d,]+ tokens/s  peak \S+ MB  0 ms left",
        steps[-1],
    )
