"""A run that goes on rounds as it did: with the kernels of its backend's own that computed it.

What they make differs from what their texts make in the last bits. A run that began where they
could not be had goes on without them, wherever that is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from edgetune.backend import Session
from edgetune.device import found_again
from edgetune.errors import ModelError
from edgetune.planning import Plan, moved
from edgetune.runs import Checkpoint, RunFolder
from edgetune.runs.facts import KERNELS
from edgetune.runs.state import read_state
from edgetune.workflows.searching import start_of_races


@dataclass(frozen=True, slots=True)
class Roundings:
    """The kernels that computed a run so far; None: nothing that it goes on from was computed yet."""

    kernels: str | None = None

    @classmethod
    def of(cls, folder: RunFolder, checkpoint: Checkpoint | None) -> Roundings:
        """Return those that a state names: the checkpoint's, or that of races before the run."""
        if checkpoint is not None:
            return cls(checkpoint.state.versions.get(KERNELS, ""))
        try:
            return cls(read_state(start_of_races(folder)).versions.get(KERNELS, ""))
        except ModelError:  # there is none, or it is damaged: whoever goes on from it says so
            return cls()

    def planned(self, plan: Plan) -> Plan:
        """Return the plan with what it takes to go on: on a card, texts hold more than kernels do."""
        if self.kernels != "" or not plan.device.kernels:
            return plan
        here = found_again(plan.device.identity)
        return plan if here is None else moved(plan, replace(here, kernels=False))

    def keep(self, session: Session) -> str:
        """Have a session compute as before; return what to tell if it leaves kernels out for that."""
        if self.kernels is None:
            return ""
        here = session.kernels()
        session.only_kernels(self.kernels)
        if session.kernels() == here:
            return ""
        before = (
            f"with {self.kernels} alone" if self.kernels else "without kernels of edgetune's own"
        )
        return (
            f"The run began {before} and goes on so, to the same bits: {here} is left out. "
            "A new run would be faster with it."
        )

    def lost(self, session: Session) -> str:
        """Return what to tell if kernels that computed the run are not here."""
        if not self.kernels or session.kernels():
            return ""
        return (
            f"The run was computed with kernels of edgetune's own ({self.kernels}), which cannot be "
            "had here now (edgetune doctor says what is missing): from here on the result may "
            "differ in its last bits."
        )


ANEW: Final = Roundings()
"""Of a run that begins."""
