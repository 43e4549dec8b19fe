"""Settings of the whole test run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from measurements import plain_measurements

from edgetune.device.base import PACKAGES
from edgetune.speed.measured import (
    Measurements,
    load_measurements,
    save_measurements,
)

# Idle OpenMP threads sleep instead of spin, as the backend has it; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Without a card its kernels are interpreted; read when Triton is imported.
if not any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/dxg")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Test processes beside each other share the processor.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _quiet_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep progress bars of transformers out of the output."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """Let commands hear signals that this run was told to ignore, as one in the background is."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep quantized weights out of the user's cache, and plans the same from test to test.

    The cache says how fast this machine is, so that no run begins by measuring it.
    """
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    for kept in _plain_rates().values():
        if load_measurements(kept.device, kept.versions) != kept:  # a pilot may have corrected them
            save_measurements(kept)


@cache
def _plain_rates() -> dict[str, Measurements]:
    return {backend: plain_measurements(backend) for backend in PACKAGES}
