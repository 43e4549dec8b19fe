"""PEFT's ``rank_pattern`` and ``alpha_pattern``: regular expressions over module paths.

PEFT takes the first key for which ``(.*\\.)?(KEY)$`` matches. Someone else's expression can take
hours to fail, so that only those are read that cannot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final

from edgetune.escapes import short

_LONGEST: Final = 256
_QUANTIFIERS: Final = 3
"""As many make a failure cost at most the fourth power of a path's length."""

_PLAIN: Final = re.compile(r"[\w.\\^$*+?|()\[\]-]+", re.ASCII)
_NESTED: Final = re.compile(r"\)[*+?{]|\(\?|\\[1-9]")
"""Groups that repeat or look around, and references back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What a config says of some modules; ``problems`` names what is not read."""

    keys: tuple[tuple[re.Pattern[str], float], ...]
    problems: tuple[str, ...]

    @classmethod
    def of(cls, config: Mapping[str, object], name: str) -> Pattern:
        """Read a field of a config; an empty one says nothing."""
        field = config.get(name) or {}
        if not isinstance(field, Mapping):
            return cls(keys=(), problems=(f"{name} is {short(field)}: expected an object",))
        keys, problems = [], []
        for key, value in field.items():
            compiled = _compiled(str(key))
            if compiled is None:
                problems.append(f"{name} has the key {short(key)}: not supported")
            elif not _is_positive(value, whole=name == "rank_pattern"):
                problems.append(f"{name} says {short(value)} for {short(key)}: not supported")
            else:
                keys.append((compiled, float(value)))
        return cls(keys=tuple(keys), problems=tuple(problems))

    def each(self, paths: Mapping[str, str], usual: float) -> dict[str, float]:
        """Return the value of each module by its ``paths``, the usual one where nothing is said."""
        return {module: self._value(path, usual) for module, path in paths.items()}

    def _value(self, path: str, usual: float) -> float:
        return next((value for key, value in self.keys if key.match(path)), usual)


def _compiled(key: str) -> re.Pattern[str] | None:
    """Return an expression as PEFT compiles it, None if it is none that is read."""
    if len(key) > _LONGEST or not _PLAIN.fullmatch(key) or _NESTED.search(key):
        return None
    if sum(key.count(sign) for sign in "*+?") > _QUANTIFIERS:
        return None
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error:
        return None


def _is_positive(value: object, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isfinite(value) and value > 0 and (not whole or value == int(value))
