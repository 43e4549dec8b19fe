"""A plan as people read it: at most 80 columns, plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from edgetune.planning import Alternative, Plan
from edgetune.planning.reasons import PLACES
from edgetune.settings.spec import SFT, values
from edgetune.storage import FILE_FORMAT, file_kinds
from edgetune.units import format_bytes, format_count, format_seconds, precise_bytes
from edgetune.workflows.several import serving_text

if TYPE_CHECKING:
    from edgetune.memory.serving import ServingEstimate
    from edgetune.workflows.verifying import Verified

COLUMNS = 80
BAR = 44
"""Columns of the memory bar."""


def plan_text(plan: Plan, *, here: bool = True) -> str:
    """Return the plan as people read it; ``here`` is whether it is for this machine."""
    time = _time(plan, here=here)
    sections = (_head(plan), _bar(plan), _phases(plan), time, _reasons(plan), _others(plan))
    return "\n\n".join("\n".join(section) for section in sections if section)


def plan_line(plan: Plan) -> str:
    """Return a plan as one line: its method, memory and time."""
    choice, time = plan.choice, plan.time
    trained = format_count(choice.method.parameters(plan.shape))
    parts = [
        f"Plan: {_method(plan)}, {trained} trained",
        f"{format_bytes(plan.memory.peak_bytes)} of {format_bytes(plan.device.budget_bytes)}",
        f"learning rate {plan.training.learning_rate:g}",
    ]
    if time.run is not None:
        parts.append(f"about {format_seconds(time.run.total)}")
    return ", ".join(parts)


def verified_text(checks: Sequence[Verified]) -> str:
    """Return how far the plan is from what was counted in a dry run."""
    lines = ["Verified by a dry run (without the runtime)"]
    for check in checks:
        over = check.planned_bytes / check.counted_bytes - 1
        lines.append(
            f"  {check.phase:<10} planned {precise_bytes(check.planned_bytes)}, "
            f"counted {precise_bytes(check.counted_bytes)} ({over:+.1%})"
        )
    return "\n".join(lines)


def served_text(plan: Plan, serving: ServingEstimate) -> str:
    """Return what it takes to serve several adapters of a plan's method over its base."""
    return "\n".join(_wrapped("Serving   ", serving_text(plan, serving)))


def _head(plan: Plan) -> list[str]:
    choice, device, model = plan.choice, plan.device, plan.model
    trained = format_count(choice.method.parameters(plan.shape))
    rows = choice.micro_batch * choice.accumulation
    lines = {
        "Machine": f"{device.name} ({device.kind}), {format_bytes(device.budget_bytes)} to use",
        "Model": f"{model.ref}, {format_count(model.parameters)} parameters",
        "Method": f"{_method(plan)}, {trained} trained parameters",
        "Base": _base(plan),
        "Step": f"{rows} rows of {choice.context} tokens, {choice.micro_batch} at once",
        "Optimizer": f"{choice.optimizer}, computing in {choice.compute_dtype}",
        "Training": _training(plan),
    }
    return [line for name, text in lines.items() for line in _wrapped(f"{name:<10}", text)]


def _method(plan: Plan) -> str:
    method = plan.choice.method
    rank = values(method).get("rank")
    return method.kind if rank is None else f"{method.kind} of rank {rank}"


def _base(plan: Plan) -> str:
    choice, kept = plan.choice, plan.choice.checkpointing
    stored: str = plan.shape.dtype if choice.quantization == "none" else choice.quantization
    if choice.quantization == FILE_FORMAT:
        stored = f"{file_kinds(plan.shape)} as in the file"
    blocks = "no checkpointing"
    if kept.layers:
        where = "" if kept.offload == "none" else f" to {kept.offload}"
        blocks = f"{kept.layers} of {plan.shape.layers} blocks checkpointed{where}"
    return f"{stored}, {PLACES[choice.placement]}, {blocks}"


def _training(plan: Plan) -> str:
    training = plan.training
    span = f"{training.steps} steps" if training.steps else f"{training.epochs:g} epochs"
    objective = "" if training.objective == SFT else f"{training.objective}, "
    return f"{objective}{span}, learning rate {training.learning_rate:g}, seed {training.seed}"


def _bar(plan: Plan) -> list[str]:
    """Return a line a part, one beginning where the one above ends, and what is left."""
    budget, total = plan.device.budget_bytes, plan.memory.parts.total
    parts = sorted(values(plan.memory.parts).items(), key=lambda part: -part[1])
    lines, used = [f"Memory in training, of {format_bytes(budget)}"], 0
    for name, size in parts:
        if size:
            lines.append(_part(name, size, used, max(budget, total), "#"))
            used += size
    if total < budget:
        lines.append(_part("free", budget - total, total, budget, "."))
    return lines


def _part(name: str, size: int, used: int, scale: int, mark: str) -> str:
    start = min(BAR * used // scale, BAR - 1)
    stop = max(start + 1, min(BAR, ceil(BAR * (used + size) / scale)))
    bar = " " * start + mark * (stop - start)
    return f"  {name:<12}{format_bytes(size):>9}  |{bar:<{BAR}}|"


def _phases(plan: Plan) -> list[str]:
    phases = values(plan.memory.phases).items()
    text = ", ".join(f"{name} {format_bytes(size)}" for name, size in phases)
    return _wrapped("Peak by phase   ", text)


def _time(plan: Plan, *, here: bool) -> list[str]:
    time = plan.time
    if not time.seconds_per_step:
        more = "; `edgetune plan --measure` measures it" if here else ""
        return _wrapped("Time   ", f"not known for this machine{more}")
    speed = f"{time.tokens_per_second:,.0f} tokens/s"
    if time.basis == "profile":
        more = "; --measure measures this machine" if here else ""
        basis = f"estimated from published rates{more}"
    else:
        basis = "measured on this machine"
    step = f"{format_seconds(time.seconds_per_step)} a step, {speed} ({basis})"
    return [*_wrapped("Time   ", step), *_whole(plan)]


def _whole(plan: Plan) -> Iterable[str]:
    """Yield how long the whole run takes and each of its parts, where its rows are known."""
    if run := plan.time.run:
        races = f"races of {'methods' if plan.training.search == 'method' else 'rates'} at most"
        parts = {
            "opening": run.opening, races: run.search, "pilot": run.pilot, "steps": run.steps,
            "evaluation": run.evaluations, "saves": run.saves, "verdict": run.judging,
        }  # fmt: skip
        told = {name: format_seconds(value) for name, value in parts.items() if value}
        text = ", ".join(f"{name} {value}" for name, value in told.items())
        yield from _wrapped("       ", f"about {format_seconds(run.total)} in all: {text}")


def _reasons(plan: Plan) -> list[str]:
    return ["Why", *(line for reason in plan.reasons for line in _wrapped("- ", reason))]


def _others(plan: Plan) -> list[str]:
    if not plan.alternatives:
        return []
    return [
        "Alternatives",
        *(line for x in plan.alternatives for line in _wrapped("- ", _alternative(x))),
    ]


def _alternative(alternative: Alternative) -> str:
    return f"{_words(alternative.choice)}: {alternative.because}"


def _words(changes: Mapping[str, Any]) -> str:
    """Return the knobs in which a neighbour differs."""
    return ", ".join(_WORDS.get(name, _plain)(name, value) for name, value in changes.items())


def _plain(name: str, value: Any) -> str:
    return f"{name.replace('_', ' ')} {value}"


_WORDS: Mapping[str, Callable[[str, Any], str]] = {
    "checkpointing": lambda _, kept: f"checkpointing {kept['layers'] or 'none'}",
    "quantization": lambda _, kind: "16-bit weights" if kind == "none" else f"{kind} weights",
    "placement": lambda _, place: f"weights {PLACES[place]}",
    "micro_batch": lambda _, rows: f"{rows} rows at once",
    "accumulation": lambda _, times: f"{times} micro-batch{'' if times == 1 else 'es'} a step",
    "context": lambda _, tokens: f"rows of {tokens} tokens",
}


def _wrapped(head: str, text: str) -> list[str]:
    """Return text behind a head, its further lines indented as far."""
    return wrap(
        text, COLUMNS, initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
