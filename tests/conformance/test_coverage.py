"""What is declared once is there in every backend."""

from __future__ import annotations

import inspect
from importlib import import_module
from pkgutil import iter_modules

import pytest
from models import SHAPES

import edgetune.methods
import edgetune.network.mixers
from conformance.backends import BACKENDS
from conformance.cases import CASES, Case
from edgetune.errors import UsageError
from edgetune.mixer import Recurrent
from edgetune.network.ops import Ops

CLASSES = {"torch": "TorchOps", "mlx": "MlxOps"}
MIXERS = sorted(module.name for module in iter_modules(edgetune.network.mixers.__path__))
PLANS = ("edgetune.memory.mixers", "edgetune.memory.lazy.mixers", "edgetune.speed.mixers")


@pytest.mark.parametrize("backend", sorted({*BACKENDS, *CLASSES}))
def test_a_backend_implements_the_operations_as_they_are_declared(backend: str) -> None:
    found = getattr(import_module(f"edgetune_{backend}.ops"), CLASSES[backend])

    assert _operations(found) == _operations(Ops)


@pytest.mark.parametrize("kind", edgetune.methods.METHODS)
def test_a_method_is_in_the_file_that_the_registry_names(kind: str) -> None:
    assert edgetune.methods.method_class(kind).kind == kind


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_tensor_of_a_projection_says_whether_it_is_rescaled(case: Case) -> None:
    """Only what is drawn at random does not: it cannot follow."""
    for family, shape in SHAPES.items():
        modules = {
            f"{shape.block(layer)}{linear.module}"
            for layer, block in enumerate(shape.blocks)
            for linear in block.linears
        }
        try:
            tensors = case.method.tensors(shape)
        except UsageError:  # no place for it
            continue
        own = [x for x in tensors if x.module(modules)]
        silent = [x.name for x in own if x.rescaled is None and x.trained]
        assert not silent, family


@pytest.mark.parametrize("kind", MIXERS)
def test_a_mixer_is_in_the_file_of_its_name(kind: str) -> None:
    own = vars(import_module(f"edgetune.network.mixers.{kind}")).values()
    found = [x for x in own if isinstance(x, type) and issubclass(x, Recurrent)]

    assert [x.kind for x in found if x is not Recurrent] == [kind]


@pytest.mark.parametrize(
    "package", [*PLANS, *(f"edgetune_{backend}.mixers" for backend in sorted(BACKENDS))]
)
@pytest.mark.parametrize("kind", MIXERS)
def test_a_package_does_with_a_mixer_what_it_declares(package: str, kind: str) -> None:
    declared = _protocols(package)
    found = vars(import_module(f"{package}.{kind}"))

    assert declared
    assert {name: _parameters(found[name]) for name in declared} == declared


def _protocols(package: str) -> dict[str, list[str]]:
    """Return the functions that a package wants in each of its files, and their parameters."""
    names = {"Mixed": "mixed", "MixedAfter": "mixed_after"}
    own = vars(import_module(package))
    return {name: _parameters(own[x].__call__)[1:] for x, name in names.items() if x in own}


def _parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


def _operations(ops: type) -> dict[str, list[str]]:
    """Return the names of the operations and of their parameters."""
    functions = {name: x for name, x in vars(ops).items() if callable(x) and name[0] != "_"}
    return {name: _parameters(x) for name, x in functions.items()}
