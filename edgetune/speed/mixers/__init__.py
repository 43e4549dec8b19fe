"""What each kind of mixer that carries a state takes: a file of its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgetune.mixer import Recurrent
from edgetune.speed.counted import Counted, Counting


class Mixed(Protocol):
    """What each file has as ``mixed``."""

    def __call__(
        self, ops: Counting, mixer: Any, inputs: Sequence[Counted], own: Mapping[str, Counted]
    ) -> Counted:
        """Return what the mixer makes (B, S, ...) of its inputs (B, S, ...).

        ``own`` are the tensors of the mixer by their roles, in their order.
        """


def mixed(mixer: Recurrent) -> Mixed:
    """Return how a mixer is counted."""
    found: Mixed = mixer.module_in(__name__).mixed
    return found
