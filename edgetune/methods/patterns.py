"""Settings that some targets have of their own: ``NAME=VALUE``, the first match counts.

>>> entries("rank_pattern", ("q_proj=8", "mlp.down_proj=32"), whole=True)
(('q_proj', 8.0), ('mlp.down_proj', 32.0))
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NoReturn

from edgetune.errors import UsageError
from edgetune.escapes import short
from edgetune.methods.targets import Target, matches
from edgetune.settings.spec import MOST_REAL, MOST_WHOLE

Entries = tuple[tuple[str, float], ...]


@lru_cache(maxsize=64)
def entries(setting: str, pattern: tuple[str, ...], *, whole: bool = False) -> Entries:
    """Return names and values; ``whole`` ones are numbers of components, from 1 on.

    Raises:
        UsageError: naming the first entry that is no name with a positive number.
    """
    return tuple(_entry(setting, text, whole) for text in pattern)


def value_of(found: Entries, target: Target) -> float | None:
    """Return the value of the first entry that names a target, if one does."""
    return next((value for name, value in found if matches(name, target)), None)


def refuse_unmatched(setting: str, pattern: Sequence[str], targets: Sequence[Target]) -> None:
    """Check that every entry names a target.

    Raises:
        UsageError: naming those that do not.
    """
    names = [text.partition("=")[0] for text in pattern]
    lost = [name for name in names if not any(matches(name, target) for target in targets)]
    if lost:
        raise UsageError(
            f"--{setting.replace('_', '-')} names {', '.join(lost)}, and no target is named so. "
            "A name is one that --targets takes."
        )


def _entry(setting: str, text: str, whole: bool) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        value = float(int(number)) if whole else float(number)
    except (ValueError, OverflowError):
        _refuse(setting, text, whole)
    if not name or not 0 < value <= (MOST_WHOLE if whole else MOST_REAL):
        _refuse(setting, text, whole)
    return name, value


def _refuse(setting: str, text: str, whole: bool) -> NoReturn:
    number = "whole number from 1 on" if whole else "number above 0"
    raise UsageError(
        f"--{setting.replace('_', '-')} takes NAME=NUMBER with a {number}; found {short(text)}."
    )
