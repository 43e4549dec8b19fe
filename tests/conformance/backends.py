"""The backends under test: those that ``EDGETUNE_TEST_BACKENDS`` names, every one of them usable.

Without the setting, those that are installed with the package on this system.

One that was asked for and cannot be used stops the run: it must not pass by not being there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from edgetune.backend import Backend, load_backend
from edgetune.device.base import DeviceIdentity
from edgetune.errors import EdgetuneError
from edgetune.settings.spec import Checkpointing

SETTING = "EDGETUNE_TEST_BACKENDS"


@dataclass(frozen=True, slots=True)
class Ways:
    """How a backend can hold the frozen model: a device for it, formats, places, by what they are."""

    device: str
    formats: Mapping[str, str]
    places: Mapping[str, Mapping[str, Any]]


WAYS = {
    "torch": Ways(
        "cpu",
        {"8-bit": "int8", "4-bit": "nf4", "4-bit, by name": "nf4"},
        {
            "checkpointed": {"checkpointing": Checkpointing(layers=2)},
            "streamed": {"checkpointing": Checkpointing(layers=1), "placement": "disk"},
            "offloaded": {
                "checkpointing": Checkpointing(layers=1, offload="disk"),
                "embedding": "disk", "head": "disk",
            },
        },
    ),
    "mlx": Ways(
        "mlx",
        {"8-bit": "q8", "4-bit": "q4", "4-bit, by name": "mxfp4"},
        {
            "checkpointed": {"checkpointing": Checkpointing(layers=2)},
            "streamed": {"checkpointing": Checkpointing(layers=2), "placement": "disk"},
            "offloaded": {"checkpointing": Checkpointing(layers=2, offload="disk")},
        },
    ),
}  # fmt: skip


def backends_under_test() -> dict[str, Backend]:
    """Return the backends by name, separated by commas in the setting."""
    default = "torch" if sys.platform == "win32" else "torch,mlx"
    names = [name.strip() for name in os.environ.get(SETTING, default).split(",") if name.strip()]
    if not names:
        pytest.exit(f"{SETTING} names no backend", returncode=4)
    return {name: _opened(name) for name in names}


def _opened(name: str) -> Backend:
    try:
        backend = load_backend(name)
    except EdgetuneError as error:
        pytest.exit(f"{SETTING} asks for {name}: {error}", returncode=4)
    usable = backend.usable(DeviceIdentity("mlx" if name == "mlx" else "cpu"))
    if not usable.value:
        pytest.exit(f"{SETTING} asks for {name}: {usable.because}", returncode=4)
    return backend


BACKENDS = backends_under_test()
