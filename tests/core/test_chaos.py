"""Runs that are killed, starved and damaged end as if nothing had been: the short form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).resolve().parents[2] / "tools" / "chaos.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="commands run in forked processes")
@pytest.mark.parametrize(
    ("backend", "kills"),
    [
        ("torch", 26),
        ("mlx", 4),
        pytest.param("torch", 700, marks=pytest.mark.long),
        pytest.param("mlx", 300, marks=pytest.mark.long),
    ],
)
@pytest.mark.timeout(36_000)
def test_nothing_is_lost(backend: str, kills: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, CHAOS, "--kills", str(kills), "--backends", backend],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["counts"]["attacked"] == kills
    assert counts["lost"] == 0
    assert not list(tmp_path.glob("chaos-*"))
