"""The adapter on disk, in PEFT's layout, from every backend: a folder with two files."""

from __future__ import annotations

from edgetune.adapters.base import CONFIG, WEIGHTS, LoadedAdapter
from edgetune.adapters.load import base_of, is_adapter, load_adapter
from edgetune.adapters.save import save_adapter
from edgetune.adapters.values import NotFiniteError

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "LoadedAdapter",
    "NotFiniteError",
    "base_of",
    "is_adapter",
    "load_adapter",
    "save_adapter",
]
