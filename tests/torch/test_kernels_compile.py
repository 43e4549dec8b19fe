"""Every kernel compiles to machine code for every architecture that it is offered on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

TOOL = Path(__file__).parents[2] / "tools" / "compile_kernels.py"
LAUNCHES = 21
"""Different ones in one number format."""

KEYS = """
import os

os.environ.pop("TRITON_INTERPRET", None)
from triton.runtime.jit import native_specialize_impl as key_of
from triton.compiler import make_backend
from triton.backends.compiler import GPUTarget
from edgetune_torch.kernels.adamw import _update

(blocks,) = [x for x in _update.params if x.name == "blocks"]
backend = make_backend(GPUTarget("cuda", 86, 32))
keys = {key_of(backend, n, False, not blocks.do_not_specialize, True) for n in (0, 1, 16, 37)}
assert len(keys) == 1, keys
"""
"""Whether an update of no block compiles the program that updates any number of them."""


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


def test_an_update_loads_nothing_after_its_trial() -> None:
    done = subprocess.run([sys.executable, "-c", KEYS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
