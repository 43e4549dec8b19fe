"""Fine-tune an open language model on the machine you own.

``edgetune.plan``, ``train``, ``resume``, ``load_run``, ``export``, ``combine`` and ``study`` do from
Python what the command line does; see :mod:`edgetune.api` and :mod:`edgetune.api_adapters`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from edgetune.version import __version__

if TYPE_CHECKING:
    from edgetune.api import LoadedRun, export, load_run, plan, resume, train
    from edgetune.api_adapters import combine, study

__all__ = [
    "LoadedRun",
    "__version__",
    "combine",
    "export",
    "load_run",
    "plan",
    "resume",
    "study",
    "train",
]

_ON_ADAPTERS = frozenset({"combine", "study"})


def __getattr__(name: str) -> object:
    """Import the public functions when they are first used: the package itself costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = "edgetune.api_adapters" if name in _ON_ADAPTERS else "edgetune.api"
    value: object = getattr(import_module(where), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *__all__])
