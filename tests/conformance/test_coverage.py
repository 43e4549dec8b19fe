"""What is declared once is there in every backend."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

import edgetune.methods
from conformance.backends import BACKENDS
from edgetune.network.ops import Ops

CLASSES = {"torch": "TorchOps", "mlx": "MlxOps"}


@pytest.mark.parametrize("backend", sorted({*BACKENDS, *CLASSES}))
def test_a_backend_implements_the_operations_as_they_are_declared(backend: str) -> None:
    found = getattr(import_module(f"edgetune_{backend}.ops"), CLASSES[backend])

    assert _operations(found) == _operations(Ops)


@pytest.mark.parametrize("kind", edgetune.methods.METHODS)
def test_a_method_is_in_the_file_that_the_registry_names(kind: str) -> None:
    assert edgetune.methods.method_class(kind).kind == kind


def _operations(ops: type) -> dict[str, list[str]]:
    """Return the names of the operations and of their parameters."""
    functions = {name: x for name, x in vars(ops).items() if callable(x) and name[0] != "_"}
    return {name: list(inspect.signature(x).parameters) for name, x in functions.items()}
