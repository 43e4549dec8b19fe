"""Every kernel compiles to machine code for every architecture that it is offered on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

TOOL = Path(__file__).parents[2] / "tools" / "compile_kernels.py"
LAUNCHES = 20
"""Different ones in one number format."""


@pytest.mark.parametrize(
    "capability",
    [
        "8.6",
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in ("7.5", "8.0", "8.9", "9.0", "12.0")
        ),
    ],
)
def test_kernels_compile(capability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # nothing is there from before
    done = subprocess.run(
        [sys.executable, str(TOOL), capability], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == LAUNCHES
