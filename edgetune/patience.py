"""When more training no longer helps, judged from the validation losses of the adapter alone.

The base is not looked at: some methods begin with random prompts, and are worse than it for long
while they learn.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PatienceState:
    """The ``lowest`` validation loss so far, and how many evaluations ``waited`` for a lower one.

    A part of the state of a run: a resumed one ends where an uninterrupted one does.
    """

    lowest: float | None = None
    waited: int = 0

    def after(self, loss: float) -> PatienceState:
        """Return the state after an evaluation.

        >>> state = PatienceState().after(2.0).after(2.0).after(3.0)
        >>> state.waited, state.after(1.9).waited
        (2, 0)
        """
        if self.lowest is None or loss < self.lowest:
            return PatienceState(lowest=loss)
        return PatienceState(lowest=self.lowest, waited=self.waited + 1)

    def is_out(self, patience: int) -> bool:
        """Tell whether that were as many evaluations as are allowed; 0 allows all."""
        return 0 < patience <= self.waited
