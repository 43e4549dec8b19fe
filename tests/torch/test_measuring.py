"""This machine is measured once, in a process of its own, and plans then say so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.speed.measured import FILE_NAME


def _plan(folder: Path, *more: str) -> dict[str, object]:
    command = [sys.executable, "-m", "edgetune", "plan", "--model", "smollm2-135m"]
    command += ["--device", "cpu", "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    time: dict[str, object] = json.loads(done.stdout)["time"]
    return time


def test_a_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    assert _plan(tmp_path)["basis"] == "profile"
    assert not (tmp_path / "cache").exists()

    measured = _plan(tmp_path, "--measure")
    assert measured["basis"] == "measured"
    kept = (tmp_path / "cache" / FILE_NAME).read_bytes()

    assert _plan(tmp_path, "--measure") == measured  # not measured again
    assert _plan(tmp_path) == measured
    assert (tmp_path / "cache" / FILE_NAME).read_bytes() == kept
    (found,) = json.loads(kept)
    assert 0 < found["operation"] < 1e-2
    assert set(found["block"]) == set(found["head"])
