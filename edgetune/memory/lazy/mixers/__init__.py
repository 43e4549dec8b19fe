"""Each kind of mixer that carries a state as the MLX engine writes it: a file of its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgetune.memory.lazy.graph import Array
from edgetune.mixer import Recurrent


class Mixed(Protocol):
    """What each file has as ``mixed``."""

    def __call__(
        self, mixer: Any, inputs: Sequence[Array], own: Mapping[str, Array], *, documents: bool
    ) -> Array:
        """Return what the mixer makes (B, S, ...) of its inputs (B, S, ...).

        ``own`` are the tensors of the mixer by their roles, in their order; ``documents`` says
        whether rows hold several.
        """


class MixedInTile(Protocol):
    """What the files have as ``mixed_in_tile`` whose mixers carry a state through tiles."""

    def __call__(
        self, mixer: Any, inputs: Sequence[Array], own: Mapping[str, Array], state: Array | None,
        skipped: int, *, documents: bool,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Return the same of a tile, and the state behind it for that before; None: the beginning.

        The first ``skipped`` tokens were mixed before.
        """


def mixed_in_tile(mixer: Recurrent) -> MixedInTile:
    """Return what a mixer makes a graph of that goes on from a state."""
    found: MixedInTile = mixer.module_in(__name__).mixed_in_tile
    return found


def mixed(mixer: Recurrent) -> Mixed:
    """Return what a mixer makes a graph of."""
    found: Mixed = mixer.module_in(__name__).mixed
    return found
