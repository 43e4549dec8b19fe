"""What is declared once is there in every backend, under the same name."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import edgetune.methods
from conformance.backends import BACKENDS

DATA = {"__init__", "base", "initial", "targets"}
"""Files of ``edgetune/methods`` that are the vocabulary of methods, not methods."""


def _names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")} - DATA


@pytest.mark.parametrize("backend", sorted({*BACKENDS, "torch", "mlx"}))
def test_a_backend_has_a_file_for_every_method(backend: str) -> None:
    spec = find_spec(f"edgetune_{backend}")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "methods"

    assert _names(folder) == _names(Path(edgetune.methods.__file__).parent)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_lists_every_method(backend: str) -> None:
    listed = import_module(f"edgetune_{backend}.methods").ADAPTATIONS

    assert listed.keys() == edgetune.methods.METHODS.keys()
