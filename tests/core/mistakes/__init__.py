"""What people really get wrong, on our command line: the lines, and what must be said to each."""

from __future__ import annotations

from mistakes.adapters import ADAPTERS
from mistakes.commands import COMMANDS
from mistakes.data import DATA
from mistakes.mistake import Mistake
from mistakes.models import MODELS
from mistakes.settings import SETTINGS

ALL: tuple[Mistake, ...] = (*COMMANDS, *MODELS, *DATA, *SETTINGS, *ADAPTERS)

__all__ = ["ALL", "Mistake"]
