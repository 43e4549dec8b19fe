"""The plan: from a device, a model and what the user fixed to a choice with its reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from edgetune import methods
from edgetune.choice import Choice, choice_from_json
from edgetune.device import Device
from edgetune.errors import NothingFitsError, UsageError
from edgetune.memory import MemoryEstimate, Parts, Phases, estimate
from edgetune.shape import ModelShape
from edgetune.spec import Checkpointing, Decision, Quantization, Training, to_plain
from edgetune.speed import TimeEstimate, step_time
from edgetune.units import format_bytes

VERSION = 1
FILE_NAME = "edgetune-plan.yaml"
QUANTIZATIONS: dict[str, tuple[Quantization, ...]] = {"torch": ("none", "nf4"), "mlx": ("none",)}
"""What each backend can hold frozen weights in, the most exact first."""

_HEADER = "# Made by `edgetune plan`; `edgetune train` in this folder takes it.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSummary:
    """The device as the plan saw it, in bytes."""

    name: str
    backend: Literal["torch", "mlx"]
    kind: Literal["cuda", "cpu", "mlx"]
    total_bytes: int
    free_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """The model as the plan saw it."""

    ref: str
    parameters: int
    layers: int
    hidden_size: int
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """The examples as the plan saw them: rows to train on, and tokens of all and of the longest."""

    path: str
    rows: int
    longest: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
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
    rejected: tuple[Rejected, ...] = ()
    data: DataFacts | None = None

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
            "rejected": to_plain(self.rejected),
        }

    def save(self, path: Path) -> None:
        """Write the plan file."""
        path.write_text(_HEADER + yaml.safe_dump(self.to_json(), sort_keys=False), "utf-8")


def plan_from_json(plain: Mapping[str, Any], shape: ModelShape) -> Plan:
    """Return the plan that :meth:`Plan.to_json` wrote, for a model of this shape.

    Raises:
        UsageError: if it is of another version or incomplete.
    """
    if plain.get("version") != VERSION:
        raise UsageError(f"The plan is of version {plain.get('version')}; expected {VERSION}.")
    try:
        memory = dict(plain["memory"])
        return Plan(
            device=DeviceSummary(**plain["device"]),
            model=ModelSummary(**plain["model"]),
            data=DataFacts(**plain["data"]) if plain.get("data") else None,
            shape=shape,
            choice=choice_from_json(plain["choice"]),
            training=Training(**plain["training"]),
            memory=MemoryEstimate(
                peak_bytes=memory["peak_bytes"],
                phases=Phases(**memory["phases"]),
                parts=Parts(**memory["parts"]),
            ),
            time=TimeEstimate(**plain["time"]),
            fits=plain["fits"],
            reasons=tuple(plain["reasons"]),
            rejected=tuple(Rejected(**item) for item in plain["rejected"]),
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"The plan file is incomplete or was changed: {error}.") from None


def read_plan_file(path: Path) -> dict[str, Any]:
    """Return what a plan file holds.

    Raises:
        UsageError: if it cannot be read as a plan.
    """
    try:
        plain = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"There is no plan file {path}. Make one with `edgetune plan`.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"The plan file {path} cannot be read: {reason}") from None
    if not isinstance(plain, dict) or "choice" not in plain:
        raise UsageError(f"{path} is not a plan file. Make one with `edgetune plan`.")
    return plain


def make_plan(
    device: Device,
    ref: str,
    shape: ModelShape,
    *,
    fixed: Mapping[str, Any],
    training: Mapping[str, Any],
    facts: DataFacts | None = None,
    memory: int | None = None,
) -> Plan:
    """Return the fastest choice within the memory that keeps what the user fixed.

    ``fixed`` holds knobs of the choice by name, method settings among them, ``training`` those
    of the training; ``memory`` is a limit in bytes.

    Raises:
        NothingFitsError: if nothing fits, with the nearest thing that would.
        UsageError: if the fixed knobs contradict each other or the device.
    """
    budget = device.usable_bytes if memory is None else min(memory, device.usable_bytes)
    start, reasons = _first_choice(device, shape, fixed, facts)
    settings, learned = training_for(shape, training, facts)
    kind = device.kind
    candidates = list(_candidates(start, shape, fixed, QUANTIZATIONS[device.backend]))
    peaks = [estimate(shape, choice, kind) for choice in candidates]
    chosen = next((i for i, peak in enumerate(peaks) if peak.peak_bytes <= budget), None)
    if chosen is None:
        least = min(range(len(peaks)), key=lambda i: peaks[i].peak_bytes)
        raise NothingFitsError(
            f"{ref} needs {format_bytes(peaks[least].peak_bytes)} at the least, and "
            f"{format_bytes(budget)} are there. The nearest that would fit: "
            f"{_short(candidates[least])} with --memory {peaks[least].peak_bytes}."
        )
    choice = candidates[chosen]
    rejected = tuple(
        Rejected(
            choice={"quantization": c.quantization, "checkpointing": to_plain(c.checkpointing)},
            peak_bytes=peak.peak_bytes,
            because=f"needs {format_bytes(peak.peak_bytes)} of {format_bytes(budget)}",
        )
        for c, peak in zip(candidates[:chosen], peaks, strict=False)
    )
    return Plan(
        device=DeviceSummary(
            name=device.name,
            backend=device.backend,
            kind=kind,
            total_bytes=device.total_bytes,
            free_bytes=device.free_bytes,
            budget_bytes=budget,
        ),
        model=ModelSummary(
            ref=ref,
            parameters=shape.parameters,
            layers=shape.layers,
            hidden_size=shape.hidden_size,
            vocabulary=shape.vocabulary,
        ),
        shape=shape,
        choice=choice,
        training=settings,
        memory=peaks[chosen],
        time=step_time(shape, choice, device),
        fits=True,
        data=facts,
        reasons=(*reasons, *learned, *_why(choice, shape, fixed, peaks[chosen], budget)),
        rejected=rejected,
    )


def _first_choice(
    device: Device, shape: ModelShape, fixed: Mapping[str, Any], facts: DataFacts | None
) -> tuple[Choice, list[str]]:
    """Return the choice that would be taken if memory were free, and its reasons."""
    settings = {k: v for k, v in fixed.items() if k not in Choice.__dataclass_fields__}
    kind = fixed.get("method", "lora")
    reasons = []
    if kind == "lora" and "rank" not in settings:
        rank = rank_for(facts)
        settings["rank"] = rank.value
        reasons.append(f"rank {rank.value}: {rank.because}")
    context = context_for(shape, facts)
    if "context" not in fixed:
        reasons.append(f"context {context.value}: {context.because}")
    rows = max(1, min(8, 8192 // fixed.get("context", context.value)))
    choice = Choice(
        method=methods.build(kind, settings),
        quantization="none",
        checkpointing=Checkpointing(layers=0),
        placement="resident",
        optimizer="adamw",
        compute_dtype="bfloat16" if device.rate_16bit > device.rate_32bit else "float32",
        context=context.value,
        micro_batch=rows,
        accumulation=8 // rows,
        loss_chunk=256,
    )
    own = {k: v for k, v in fixed.items() if k in Choice.__dataclass_fields__ and k != "method"}
    if own.get("checkpointing") == "all":
        own["checkpointing"] = Checkpointing(layers=shape.layers)
    return replace(choice, **own), reasons


def training_for(
    shape: ModelShape, fixed: Mapping[str, Any], facts: DataFacts | None
) -> tuple[Training, list[str]]:
    """Return the training settings, with what was not fixed decided, and the reasons.

    Wider models want smaller steps: the rate falls with the hidden size as in the published
    recipes (2e-4 at 4096).
    """
    settings, reasons = dict(fixed), []
    if "learning_rate" not in settings:
        rate = float(f"{2e-4 * (4096 / shape.hidden_size) ** 0.8:.1e}")
        settings["learning_rate"] = rate
        reasons.append(f"learning rate {rate:g}: hidden size {shape.hidden_size}")
    if facts is not None and not {"epochs", "steps"} & settings.keys():
        epochs = min(10, max(3, round(2_000 / max(1, facts.rows))))
        settings["epochs"] = float(epochs)
        reasons.append(f"{epochs} epochs: {facts.rows} rows to train on")
    return Training(**settings), reasons


def rank_for(facts: DataFacts | None) -> Decision[int]:
    """Return LoRA's rank by the number of rows.

    Hu et al. 2021 (table 6) find ranks of 1 to 8 enough for tasks of up to some 100 k rows when
    several matrices are adapted; higher ranks pay only when there is more to be learned.
    """
    if facts is None:
        return Decision(16, "the usual size, as no data was given")
    for rows, rank in ((2_000, 8), (20_000, 16), (100_000, 32)):
        if facts.rows < rows:
            return Decision(rank, f"{facts.rows} rows")
    return Decision(128, f"{facts.rows} rows, enough to use a large update")


def context_for(shape: ModelShape, facts: DataFacts | None) -> Decision[int]:
    """Return the row length: the longest row, rounded up, within what the model can read."""
    if facts is None:
        return Decision(min(2048, shape.max_context), "a usual length, as no data was given")
    wanted = -(-facts.longest // 32) * 32
    if wanted > shape.max_context:
        return Decision(shape.max_context, "the longest that the model reads; some rows are longer")
    return Decision(wanted, f"the longest row has {facts.longest} tokens")


def _candidates(
    start: Choice, shape: ModelShape, fixed: Mapping[str, Any], formats: tuple[Quantization, ...]
) -> Iterator[Choice]:
    """Yield choices from the best to the last resort: neutral knobs move before costly ones."""
    for quantization in (fixed["quantization"],) if "quantization" in fixed else formats:
        for layers in (0, shape.layers // 2, shape.layers):
            for rows in _row_counts(start, fixed):
                choice = replace(
                    start,
                    quantization=quantization,
                    micro_batch=rows,
                    accumulation=fixed.get(
                        "accumulation", start.micro_batch * start.accumulation // rows
                    ),
                )
                if "checkpointing" not in fixed:
                    choice = replace(choice, checkpointing=Checkpointing(layers=layers))
                yield choice
            if "checkpointing" in fixed:
                break


def _row_counts(start: Choice, fixed: Mapping[str, Any]) -> list[int]:
    if "micro_batch" in fixed:
        return [start.micro_batch]
    return [start.micro_batch // 2**i for i in range(start.micro_batch.bit_length())]


def _why(
    choice: Choice,
    shape: ModelShape,
    fixed: Mapping[str, Any],
    memory: MemoryEstimate,
    budget: int,
) -> Iterator[str]:
    if choice.quantization != "none" and "quantization" not in fixed:
        yield "quantization nf4: the weights in 16 bits leave no room to train"
    if choice.checkpointing.layers:
        yield (
            f"checkpointing {choice.checkpointing.layers} of {shape.layers} blocks: "
            "keeping all activations would not fit"
        )
    yield f"peak {format_bytes(memory.peak_bytes)} of {format_bytes(budget)}"


def _short(choice: Choice) -> str:
    return (
        f"{choice.method.kind}, {choice.quantization} weights, context {choice.context}, "
        f"{choice.checkpointing.layers} blocks checkpointed"
    )


def dumps(plan: Plan) -> str:
    """Return the plan as JSON text."""
    return json.dumps(plan.to_json(), indent=2)
