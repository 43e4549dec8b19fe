"""What a plan holds, as it is printed and as it is written to the plan file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.choice import Choice
from edgetune.device import Device
from edgetune.device.base import BackendName, DeviceIdentity, DeviceKind
from edgetune.files import write_text
from edgetune.memory import MemoryEstimate
from edgetune.objectives import Objective, objective_of
from edgetune.run_spec import Limits, RunSpec
from edgetune.settings.spec import LongRows, Training, to_plain
from edgetune.shape import ModelShape
from edgetune.speed import TimeEstimate

VERSION = 1

_HEADER = "# Made by `edgetune plan`; `edgetune train --plan FILE` takes it.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSummary:
    """The device as the plan saw it, in bytes."""

    name: str
    backend: BackendName
    kind: DeviceKind
    total_bytes: int
    free_bytes: int
    budget_bytes: int
    limit_bytes: int | None = None
    """What the user allows with ``--memory``; an allocation beyond it fails."""
    uuid: str | None = None
    """Of a card, where a machine may have several."""
    multiplies_16bit: bool = True
    """Whether products of 16-bit numbers are computed without widening them."""
    kernels: bool = False
    """Whether the backend's own kernels compute, on a card."""

    @property
    def identity(self) -> DeviceIdentity:
        """By what its backend finds it again."""
        return DeviceIdentity(self.kind, self.uuid)

    @classmethod
    def of(cls, device: Device, budget: int, limit: int | None) -> DeviceSummary:
        """Return what a plan within ``budget`` bytes says of a device."""
        return cls(
            name=device.name,
            backend=device.backend,
            kind=device.kind,
            total_bytes=device.total_bytes,
            free_bytes=device.free_bytes,
            budget_bytes=budget,
            limit_bytes=limit,
            uuid=device.uuid,
            multiplies_16bit=device.multiplies_16bit,
            kernels=device.kernels,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """The model as the plan saw it."""

    ref: str
    parameters: int
    layers: int
    hidden_size: int
    vocabulary: int

    @classmethod
    def of(cls, ref: str, shape: ModelShape) -> ModelSummary:
        """Return what a plan says of a model."""
        return cls(
            ref=ref,
            parameters=shape.parameters,
            layers=shape.layers,
            hidden_size=shape.hidden_size,
            vocabulary=shape.vocabulary,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """The examples as the plan saw them: rows to train on, and tokens of all and of the longest.

    ``long_rows`` is what happens to rows that are longer than the context.
    """

    path: str
    rows: int
    longest: int
    tokens: int
    long_rows: LongRows = "refuse"
    validation: int | None = None
    """Rows to validate with, None where that is not known."""


def mean_document(facts: DataFacts | None, training: Training) -> float | None:
    """Return the mean tokens of a row, where several may share one; None: one each."""
    if facts is None or not training.packing:
        return None
    objective = objective_of(training)
    documents = facts.rows * (1 if objective is None else objective.documents)
    return max(1.0, facts.tokens / max(1, documents))


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A neighbour of the choice, and why it was not taken."""

    choice: dict[str, Any]
    peak_bytes: int
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a run needs to know, as it is written to the plan file."""

    device: DeviceSummary
    model: ModelSummary
    shape: ModelShape
    choice: Choice
    training: Training
    memory: MemoryEstimate
    time: TimeEstimate
    fits: bool
    reasons: tuple[str, ...]
    alternatives: tuple[Alternative, ...] = ()
    data: DataFacts | None = None
    given: tuple[str, ...] | None = None
    """Settings that the user gave, by name; None where that is not known."""

    @property
    def objective(self) -> Objective | None:
        """What is minimised, where it is an objective over answers."""
        return objective_of(self.training)

    @property
    def spec(self) -> RunSpec:
        """What a backend is told of it."""
        device, memory = self.device, self.memory
        return RunSpec(
            choice=self.choice,
            training=self.training,
            limits=Limits(
                budget_bytes=device.budget_bytes,
                limit_bytes=device.limit_bytes,
                runtime_bytes=memory.parts.runtime,
                training_bytes=memory.phases.train,
                peak_bytes=memory.peak_bytes,
            ),
            kind=device.kind,
            uuid=device.uuid,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``plan --json`` prints and the plan file holds."""
        return {
            "version": VERSION,
            "device": to_plain(self.device),
            "model": to_plain(self.model),
            "data": to_plain(self.data),
            "choice": self.choice.to_json(self.shape),
            "training": to_plain(self.training),
            "memory": to_plain(self.memory),
            "time": to_plain(self.time),
            "fits": self.fits,
            "reasons": list(self.reasons),
            "alternatives": to_plain(self.alternatives),
            **({} if self.given is None else {"given": list(self.given)}),
        }

    def save(self, path: Path) -> None:
        """Write the plan file, whole or not at all; a device is written to as it is."""
        import yaml

        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text: str = yaml.dump(self.to_json(), Dumper=dumper, sort_keys=False)
        if path.exists() and not path.is_file():
            path.write_text(_HEADER + text, "utf-8")
        else:
            write_text(path.resolve(), _HEADER + text)
