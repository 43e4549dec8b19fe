"""Bytes of each kind of mixer that carries a state, as the torch engine does it: a file of its name.

The engine's functions are followed line by line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgetune.memory.elementary import Elementary
from edgetune.memory.sized import Sized
from edgetune.mixer import Recurrent

NUMBER = 4
"""Bytes of a document's number."""

INDEX = 8
"""Bytes of a position."""


class Mixed(Protocol):
    """What each file has as ``mixed``."""

    def __call__(
        self, ops: Elementary, mixer: Any, inputs: Sequence[Sized], own: Mapping[str, Sized]
    ) -> Sized:
        """Return what the mixer makes (B, S, ...) of its inputs (B, S, ...).

        ``own`` are the tensors of the mixer by their roles, in their order.
        """


class MixedInTile(Protocol):
    """What the files have as ``mixed_in_tile`` whose mixers carry a state through tiles."""

    def __call__(
        self, ops: Elementary, mixer: Any, inputs: Sequence[Sized], own: Mapping[str, Sized],
        state: Sized | None, skipped: int,
    ) -> tuple[Sized, Sized]:  # fmt: skip
        """Return the same of a tile, and the state behind it for that before; None: the beginning.

        The first ``skipped`` tokens were mixed before.
        """


def mixed_in_tile(mixer: Recurrent) -> MixedInTile:
    """Return how the bytes of a mixer are counted that goes on from a state."""
    found: MixedInTile = mixer.module_in(__name__).mixed_in_tile
    return found


def mixed(mixer: Recurrent) -> Mixed:
    """Return how the bytes of a mixer are counted."""
    found: Mixed = mixer.module_in(__name__).mixed
    return found
