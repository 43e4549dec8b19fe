"""Fine-tune an open language model on the machine you own.

``edgetune.plan``, ``train``, ``resume``, ``load_run`` and ``export`` do from Python what the
command line does; see :mod:`edgetune.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune.version import __version__

if TYPE_CHECKING:
    from edgetune.api import LoadedRun, export, load_run, plan, resume, train

__all__ = ["LoadedRun", "__version__", "export", "load_run", "plan", "resume", "train"]


def __getattr__(name: str) -> object:
    """Import the public functions when they are first used: the package itself costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edgetune import api

    value: object = getattr(api, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *__all__])
