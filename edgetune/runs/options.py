"""What a run was told besides its plan: how it is carried out, and what follows its last step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from edgetune.files import load_json, write_json

OPTIONS: Final = "options.json"

LARGEST: Final = 1 << 20
"""Bytes of it; ours has a hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a run was told besides its plan; its folder keeps it, so that it goes on as it began."""

    verdict: bool = True
    samples: int = 3
    strict: bool = False
    pause: bool = False
    notify: bool = False
    log: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> RunOptions:
        """Return what a folder keeps; what it lacks, or is damaged there, is as by default."""
        try:
            plain = load_json(folder / OPTIONS, LARGEST)
        except (OSError, ValueError):
            return cls()
        return cls(**_known(plain)) if isinstance(plain, dict) else cls()

    def keep(self, folder: Path) -> None:
        """Write it into a folder that does not say the same.

        Raises:
            OSError: if it cannot be written.
        """
        if self != RunOptions.of(folder):
            write_json(folder / OPTIONS, asdict(self))


AS_USUAL: Final = RunOptions()


def _known(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are there and of their type."""
    found = {}
    for each in fields(RunOptions):
        value, default = plain.get(each.name), each.default
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            value = tuple(value)
        if type(value) is type(default):
            found[each.name] = value
    return found
