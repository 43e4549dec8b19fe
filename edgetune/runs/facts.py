"""What a run is made of, so that a checkpoint says whether another run could go on from it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from typing import Any, Final

from edgetune.device.base import PACKAGES
from edgetune.events import RunState
from edgetune.files import sha256_json
from edgetune.planning import Plan
from edgetune.runs.retention import checkpoint_name
from edgetune.schedule import Schedule
from edgetune.version import __version__

VERSION: Final = 2
LIBRARIES: Final = ("numpy", "tokenizers", "transformers", *chain.from_iterable(PACKAGES.values()))
LATER: Final = frozenset(
    {"desirable_weight", "undesirable_weight", "gradient_parts", "share_prompts"}
)
"""Settings that older plans lack: they count where they are given, so that old runs can go on."""

RESULTLESS: Final = frozenset({"save_every", "keep", "search", "search_methods", "search_size"})
"""Settings of a training that do not decide its result: what was found by a search has its own."""

LATER_CHOICES: Final[Mapping[str, Any]] = {
    "tile": 0,
    "modules_to_save": [],
    "modules_rate": 0.1,
}
"""Knobs of a choice that older plans lack, and what they were then: they count where they differ."""

KERNELS: Final = "kernels"
"""What the backend's own kernels are among versions, where they compute."""

PRODUCTS: Final = "products of bfloat16"
"""How a processor multiplies them, among versions: older states do not say it."""

RANDOM: Final = "every draw is a function of (seed, step, name); no generator has a state"


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a bit of the result."""
    found = {"edgetune": __version__, "python": platform.python_version()}
    found |= {name: known for name in LIBRARIES if (known := _version(name))}
    return found


def _version(name: str) -> str:
    """Return the version of a library, nothing if it is not known."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """What a whole ``state.json`` says; ``plan``, ``data`` and ``model`` are hashes.

    ``files`` has the SHA-256 of the other files by name.
    """

    progress: RunState
    plan: str
    data: str
    model: str
    versions: Mapping[str, str]
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run besides its tensors; ``plan``, ``data`` and ``model`` are hashes."""

    plan: str
    data: str
    model: str
    seed: int
    schedule: Schedule
    steps_per_epoch: int
    versions: Mapping[str, str] = field(default_factory=versions)

    def computed_by(self, kernels: str) -> RunFacts:
        """Return the facts of a run in which these kernels of the backend's own compute."""
        return replace(self, versions={**self.versions, KERNELS: kernels}) if kernels else self

    def computed_on(self, plan: Plan) -> RunFacts:
        """Return the facts of a run that multiplies as the plan's processor does."""
        if plan.device.kind != "cpu" or plan.choice.compute_dtype != "bfloat16":
            return self
        how = "as they are" if plan.device.multiplies_16bit else "widened"
        return replace(self, versions={**self.versions, PRODUCTS: how})

    def state(self, progress: RunState) -> dict[str, Any]:
        """Return what ``state.json`` says at a point of the run."""
        epoch, step = divmod(progress.step, self.steps_per_epoch)
        return {
            "version": VERSION,
            "progress": asdict(progress),
            "position": {"epoch": epoch, "step": step, "steps_per_epoch": self.steps_per_epoch},
            "random": {"seed": self.seed, "scheme": RANDOM},
            "schedule": asdict(self.schedule),
            "plan": self.plan,
            "data": self.data,
            "model": self.model,
            "versions": dict(self.versions),
        }

    def returned_to(self, progress: RunState) -> tuple[str, ...]:
        """Name the checkpoints that a loss which runs away may still take the run back to."""
        if self.schedule.is_over(progress.step, progress.patience):
            return ()
        return checkpoint_name(progress.guard.good), checkpoint_name(progress.guard.earlier)

    def changed(self, state: SavedState) -> list[str]:
        """Name what is not as it was in a state and decides the result."""
        names = ("plan", "data", "model")
        return [name for name in names if getattr(state, name) != getattr(self, name)]

    def newer(self, state: SavedState) -> dict[str, str]:
        """Return the versions that are not as they were in a state, old and new."""
        before = state.versions
        return {
            name: f"{before.get(name)} -> {self.versions.get(name)}"
            for name in sorted(before.keys() | self.versions.keys())
            if before.get(name) != self.versions.get(name)
            and not (name == PRODUCTS and name not in before)
        }


def plan_hash(plan: Plan) -> str:
    """Return a hash of what decides a run's result; how often it is saved, or how its rate was found,
    does not.
    """
    training = {
        name: value
        for name, value in asdict(plan.training).items()
        if name not in RESULTLESS and not (name in LATER and value is None)
    }
    choice = {
        name: value
        for name, value in plan.choice.to_json(plan.shape).items()
        if name not in LATER_CHOICES or value != LATER_CHOICES[name]
    }
    return sha256_json({"choice": choice, "training": training})
