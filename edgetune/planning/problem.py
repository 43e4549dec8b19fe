"""What was asked for, checked against the model and the device before anything is planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetune import methods
from edgetune.choice import Choice
from edgetune.device import Device
from edgetune.device.capability import Capability, capability_of
from edgetune.errors import UsageError
from edgetune.methods import Method
from edgetune.objectives import Objective, objective_class, objective_of
from edgetune.planning.capability import fitting, scoring
from edgetune.planning.defaults import context_for, rank_for, training_for
from edgetune.planning.plan import DataFacts, mean_document
from edgetune.planning.sharing import sharing_for
from edgetune.settings.spec import SFT, Checkpointing, Training, knobs, refuse_outside
from edgetune.shape import ModelShape
from edgetune.shares import sums_held
from edgetune.storage import GROUPS, broken_rows
from edgetune.units import precise_bytes

LEAST_ROW = 2
"""Tokens of the shortest row of which one is learned."""

METHOD = "lora"
"""The method when none is asked for: the best of the cheap ones on average."""


LEAST_TILE = 64
"""Positions of the smallest tile: products of few rows are slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProblem:
    """Everything that is settled before the search: costly knobs, what is fixed, what can be."""

    device: Device
    shape: ModelShape
    capability: Capability
    budget: int
    fixed: Mapping[str, Any]
    """Knobs of the choice that the user fixed, resolved against the model."""
    method: Method
    method_fixed: Mapping[str, Any]
    """Settings of the method that the user fixed."""
    context: int
    training: Training
    facts: DataFacts | None
    reasons: tuple[str, ...]
    asked: frozenset[str]
    """Names of all that the user fixed."""
    again: Callable[[Mapping[str, Any]], SearchProblem]
    """Makes the same request with other knobs fixed."""
    ranks: int = 1
    """Processes that share the micro-batches of a step."""

    @property
    def objective(self) -> Objective | None:
        """What is minimised, where it is an objective over answers."""
        return objective_of(self.training)

    @property
    def sums_held(self) -> int:
        """Sums of gradients that wait on a rank while it makes another one."""
        return sums_held(self.ranks, self.training.gradient_parts or self.ranks)

    @property
    def documents(self) -> float | None:
        """Mean tokens of a row of the data, where several of them may share one; None: one each."""
        return mean_document(self.facts, self.training)

    def options(self, name: str, offered: Sequence[Any]) -> tuple[Any, ...]:
        """Return what may be chosen for a knob: the fixed value, else what is offered."""
        return (self.fixed[name],) if name in self.fixed else tuple(offered)


def make_problem(
    device: Device,
    shape: ModelShape,
    fixed: Mapping[str, Any],
    training: Mapping[str, Any],
    facts: DataFacts | None,
    memory: int | None,
    ranks: int = 1,
) -> SearchProblem:
    """Check what was asked and settle what touches the result.

    Raises:
        UsageError: with everything that makes no sense for this model and device.
    """
    own, reasons = _resolved(fixed, shape), []
    capability = capability_of(device)
    if shape.formats is not None:
        capability = fitting(capability, shape)
    objective = training.get("objective") or SFT
    capability = scoring(capability, shape, objective)
    problems = [*_impossible(own, shape, device, capability), *_too_few(own, objective)]
    capability = fitting(capability, shape)
    if problems:
        raise UsageError(" ".join(problems))
    refuse_outside(knobs(Choice), own)
    given = {k: v for k, v in fixed.items() if k not in Choice.__dataclass_fields__}
    settings = dict(given)
    kind = fixed.get("method", METHOD)
    if "rank" in methods.known_settings(kind) and "rank" not in settings:
        rank = rank_for(facts)
        settings["rank"] = rank.value
        reasons.append(f"rank {rank.value}: {rank.because}")
    method = methods.build(kind, settings)
    context = own.get("context")
    if context is None:
        taken = method.virtual_tokens + method.positions
        wanted = context_for(max(LEAST_ROW, shape.max_context - taken), facts)
        context = wanted.value
        reasons.append(f"context {context}: {wanted.because}")
    sharing = sharing_for(shape, fixed, training)
    if sharing is not None:
        training = {**training, "share_prompts": sharing.value}
        reasons.append(sharing.because)
    learned, learning = training_for(shape, method, training, facts)
    _refuse_method(method, shape, context, own.get("quantization"), capability)
    if learned.gradient_parts is not None and learned.gradient_parts < ranks:
        raise UsageError(
            f"--gradient-parts {learned.gradient_parts} is asked for, and {ranks} processes train: "
            "each has at least one part. Give as many, or leave it out."
        )
    return SearchProblem(
        device=device,
        shape=shape,
        capability=capability,
        budget=device.usable_bytes if memory is None else min(memory, device.usable_bytes),
        fixed=own,
        method=method,
        method_fixed=given,
        context=context,
        training=learned,
        facts=facts,
        reasons=(*_bounded(device, memory), *reasons, *learning),
        asked=frozenset(fixed),
        again=lambda other: make_problem(device, shape, other, training, facts, memory, ranks),
        ranks=ranks,
    )


def _bounded(device: Device, memory: int | None) -> Iterator[str]:
    """Say what is not obvious: that more was allowed than is there."""
    if memory is not None and memory > device.usable_bytes:
        yield (
            f"{precise_bytes(device.usable_bytes)} instead of the {precise_bytes(memory)} that are "
            "allowed: the device has no more for a run"
        )


def _refuse_method(
    method: Method, shape: ModelShape, context: int, fixed: str | None, capability: Capability
) -> None:
    """Refuse a method that the model, or every format of the weights that is open, rules out."""
    layers = getattr(method, "layers", None)
    if layers is not None and layers > shape.layers:
        raise UsageError(
            f"--layers {layers} is asked for, but the model has {shape.layers} blocks."
        )
    method.tensors(shape)
    formats = capability.quantizations if fixed is None else (fixed,)
    refused = [method.refusals(shape, context=context, quantization=name) for name in formats]
    if all(refused):
        raise UsageError(" ".join(refused[0]))


def _resolved(fixed: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
    """Return the knobs of the choice, with words written out for this model."""
    own = {k: v for k, v in fixed.items() if k in Choice.__dataclass_fields__ and k != "method"}
    if isinstance(own.get("checkpointing"), str):
        _, _, offload = own["checkpointing"].partition(":")
        own["checkpointing"] = Checkpointing(
            layers=shape.layers,
            offload=offload or "none",
        )
    return own


def _impossible(
    own: Mapping[str, Any], shape: ModelShape, device: Device, capability: Capability
) -> Iterator[str]:
    """Name what the model or the device cannot do."""
    offered = {
        "quantization": (*capability.quantizations, *capability.on_request),
        "placement": capability.placements,
        "optimizer": capability.optimizers,
        "compute_dtype": capability.compute_dtypes,
    }
    for name, known in offered.items():
        if name in own and own[name] not in known:
            yield _unsupported(f"--{name.replace('_', '-')} {own[name]}", device, known)
    quantization = own.get("quantization", "none")
    broken = broken_rows(shape, quantization)
    if broken is not None:
        yield (
            f"--quantization {quantization} stores inputs in groups, and this model has a matrix "
            f"with {broken} inputs, which is no multiple of {GROUPS[quantization]}. "
            "--quantization none works."
        )
    if shape.formats is not None and own.get("head") == "int8":
        yield "--head int8 would round a head again that the GGUF file has quantized already."
    if shape.published is not None and shape.published.vocabulary:
        for name in ("embedding", "head"):
            if own.get(name) == "disk":
                yield (
                    f"--{name} disk reads rows from the checkpoint, and this one has them packed "
                    f"({shape.published.words}). --{name} resident works."
                )
    kept = own.get("checkpointing")
    if kept is not None and kept.offload not in capability.offloads:
        yield _unsupported(f"--checkpointing …:{kept.offload}", device, capability.offloads)
    streamed = own.get("placement", "resident") != "resident"
    keeps = kept is not None and kept.layers < shape.layers
    if streamed and keeps and not capability.keeps_streamed:
        yield f"On {device.kind}, --placement {own['placement']} needs --checkpointing all."
    if keeps and not capability.keeps_blocks:
        wants = "a preference objective"
        if shape.lenders and not capability.keeps_lending:
            wants = "a model of which layers read the keys of others"
        yield f"On {device.kind}, {wants} needs --checkpointing all."
    if kept is not None and not 0 <= kept.layers <= shape.layers:
        yield f"--checkpointing {kept.layers} is asked for, but the model has {shape.layers} blocks."
    tile = own.get("tile", 0)
    if tile and (tile < LEAST_TILE or tile & (tile - 1)):
        yield f"--tile {tile} is not 0, nor a power of two from {LEAST_TILE} on."
    elif tile and not any(block.splits for block in shape.kinds):
        yield (
            f"--tile {tile} would change nothing: all blocks of this {shape.family} model are computed "
            "whole. Leave it out."
        )
    elif tile and kept is not None and kept.layers == 0:
        yield (
            f"--tile {tile} is for blocks that are checkpointed, and --checkpointing none leaves none. "
            "Leave out one of them."
        )
    if own.get("context", 0) > shape.max_context:
        yield (
            f"--context {own['context']} is longer than the {shape.max_context} tokens that the "
            "model can read."
        )


def _too_few(own: Mapping[str, Any], objective: str) -> Iterator[str]:
    """Name a step of one row, where an objective compares its answer with those of others."""
    alone = own.get("micro_batch") == own.get("accumulation") == 1
    if alone and objective != SFT and objective_class(objective).needs_mismatched:
        yield (
            f"--objective {objective} compares the rows of a step with each other, and --micro-batch"
            " 1 with --accumulation 1 leaves one. Give one of them a larger number."
        )


def _unsupported(asked: str, device: Device, known: Sequence[str]) -> str:
    return f"Unsupported on {device.kind}: {asked}. Supported: {', '.join(known)}."
