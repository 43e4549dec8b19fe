"""Plans and helps stay as they were reviewed: `python tools/update_golden.py` writes them anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_plans_and_helps_are_the_golden_ones() -> None:
    tool = ROOT / "tools" / "update_golden.py"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_line_is_wider_than_a_terminal() -> None:
    for file in (ROOT / "tests" / "golden" / "plans").glob("*.txt"):
        text = file.read_text("utf-8")
        if not text.startswith("exit"):
            assert max(map(len, text.splitlines())) <= 80, file.name
            assert text.isascii(), file.name
