"""Settings of the whole test run."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Idle OpenMP threads sleep instead of spin, as the backend has it; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _quiet_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep progress bars of transformers out of the output."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep quantized weights out of the user's cache."""
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
