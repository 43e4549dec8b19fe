"""How each kind of mixer that carries a state is computed: a file of its name, with its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx

from edgetune.mixer import Recurrent


class Mixed(Protocol):
    """What each file has as ``mixed``."""

    def __call__(
        self,
        mixer: Any,
        inputs: Sequence[mx.array],
        own: Mapping[str, mx.array],
        documents: mx.array | None,
    ) -> mx.array:
        """Return what the mixer makes (B, S, ...) of its inputs (B, S, ...), by document.

        ``own`` are the tensors of the mixer by their roles, in their order. ``documents`` (B, S) are
        the numbers of the tokens' documents, if rows hold several.
        """


class MixedAfter(Protocol):
    """What each file has as ``mixed_after``."""

    def __call__(
        self, mixer: Any, inputs: Sequence[mx.array], own: Mapping[str, mx.array], before: Any
    ) -> tuple[mx.array, Any]:
        """Return the same (1, S, ...) of the next tokens of one document, and what goes on.

        ``before`` is what this returned for the tokens before them; None at the beginning.
        """


class MixedInTile(Protocol):
    """What the files have as ``mixed_in_tile`` whose mixers carry a state through tiles."""

    def __call__(
        self, mixer: Any, inputs: Sequence[mx.array], own: Mapping[str, mx.array],
        documents: mx.array | None, state: mx.array | None, skipped: int,
    ) -> tuple[mx.array, mx.array]:  # fmt: skip
        """Return the same of a tile, and the state behind it for that before; None: the beginning.

        The first ``skipped`` tokens were mixed before; what is made of them here is not read.
        """


def mixed(mixer: Recurrent) -> Mixed:
    """Return how a mixer is computed in rows of documents."""
    found: Mixed = mixer.module_in(__name__).mixed
    return found


def mixed_in_tile(mixer: Recurrent) -> MixedInTile:
    """Return how a tile goes on from the state of the one before."""
    found: MixedInTile = mixer.module_in(__name__).mixed_in_tile
    return found


def mixed_after(mixer: Recurrent) -> MixedAfter:
    """Return how a mixer goes on from the tokens before."""
    found: MixedAfter = mixer.module_in(__name__).mixed_after
    return found
