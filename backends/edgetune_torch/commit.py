"""An update that has begun is brought to its end: half of one would be wrong without a word.

To undo it, all that it overwrites would have to be kept, as much memory again as weights and
optimizer state take. Instead it allocates what it needs before it changes anything, in parts that
give the same when they are done again; a part that fails all the same is done again.
"""

from __future__ import annotations

from collections.abc import Callable

from edgetune_torch.out_of_memory import is_out_of_memory

TRIES = 3
RESERVE = 1 << 20
"""Bytes that are set aside, never written, and given up when a part fails."""


class Commit:
    """One update; it has ``begun`` when something was overwritten."""

    def __init__(self) -> None:
        """Set the reserve aside: objects of Python and torch need memory too."""
        self.begun = False
        self._reserve: bytearray | None = bytearray(RESERVE)

    def finish(self, part: Callable[[], None]) -> None:
        """Do a part of the update, again if memory runs out for it once something has changed."""
        for left in reversed(range(TRIES)):
            try:
                part()
            except (MemoryError, OSError, RuntimeError) as error:
                if not (left and self.begun and is_out_of_memory(error)):
                    raise
                self._reserve = None
            else:
                return
