"""The backends under test: those that ``EDGETUNE_TEST_BACKENDS`` names, every one of them usable.

One that was asked for and cannot be used stops the run: it must not pass by not being there.
"""

from __future__ import annotations

import os

import pytest

from edgetune.backend import Backend, load_backend
from edgetune.errors import EdgetuneError

SETTING = "EDGETUNE_TEST_BACKENDS"


def backends_under_test() -> dict[str, Backend]:
    """Return the backends by name, separated by commas in the setting, torch by default."""
    names = [name.strip() for name in os.environ.get(SETTING, "torch").split(",") if name.strip()]
    if not names:
        pytest.exit(f"{SETTING} names no backend", returncode=4)
    return {name: _opened(name) for name in names}


def _opened(name: str) -> Backend:
    try:
        backend = load_backend(name)
    except EdgetuneError as error:
        pytest.exit(f"{SETTING} asks for {name}: {error}", returncode=4)
    usable = backend.usable()
    if not usable.value:
        pytest.exit(f"{SETTING} asks for {name}: {usable.because}", returncode=4)
    return backend


BACKENDS = backends_under_test()
