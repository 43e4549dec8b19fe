"""What to say when nothing fits: how much is missing, and the nearest thing that would fit."""

from __future__ import annotations

from collections.abc import Iterator

from edgetune.choice import Choice
from edgetune.errors import NothingFitsError
from edgetune.planning.ladder import rungs
from edgetune.planning.problem import SearchProblem
from edgetune.planning.reasons import PLACES
from edgetune.planning.search import Found, Search
from edgetune.settings.spec import Checkpointing
from edgetune.units import precise_bytes

LET_GO = (
    "quantization", "checkpointing", "micro_batch", "accumulation", "loss_chunk", "tile",
    "embedding", "head", "optimizer", "placement", "compute_dtype", "context",
)  # fmt: skip
"""Fixed knobs in the order in which it is asked whether something fits without them; the settings
of the method come after, and the method itself."""


def refusal(ref: str, problem: SearchProblem, search: Search) -> NothingFitsError:
    """Return the error that says why nothing fits and what would."""
    least, budget = _least(problem, search), precise_bytes(problem.budget)
    asked = " as asked for" if problem.asked else ""
    if least is None:
        host = precise_bytes(problem.device.host_free_bytes)
        why = f"{ref}{asked} cannot be placed: the budget is {budget}, and {host} of the host"
    else:
        why = (
            f"{ref}{asked} needs at least {precise_bytes(least.memory.peak_bytes)} "
            f"({_words(problem, least.choice)}); the budget is {budget}"
        )
    nearest = list(_nearest(problem, search, least))
    found = (
        f"The nearest that would fit: {', or '.join(nearest)}." if nearest else _nothing(problem)
    )
    needed = None if least is None else least.memory.peak_bytes
    return NothingFitsError(f"{why}. {found}", needed)


def _least(problem: SearchProblem, search: Search) -> Found | None:
    found = [least for rung in rungs(problem) if (least := search.least(rung))]
    return min(found, key=lambda least: least.memory.peak_bytes, default=None)


def _nearest(problem: SearchProblem, search: Search, least: Found | None) -> Iterator[str]:
    """Yield flags: one that keeps the memory, then more memory if the device has it."""
    for name, found in _without(problem, search):
        size = precise_bytes(found.memory.peak_bytes)
        yield f"{_flag(name, found)} ({size}, {_words(problem, found.choice)})"
        break
    if least is not None and least.memory.peak_bytes <= problem.device.usable_bytes:
        more = -(-least.memory.peak_bytes // 10**6)
        yield f"--memory {more}MB with {_words(problem, least.choice)}"


def _nothing(problem: SearchProblem) -> str:
    usable = precise_bytes(problem.device.usable_bytes)
    return f"Nothing like it would: the device has {usable} for a run. Take a smaller model."


def _without(problem: SearchProblem, search: Search) -> Iterator[tuple[str, Found]]:
    """Yield what would fit if one of the fixed knobs were let go."""
    fixed = {**problem.fixed, **problem.method_fixed}
    if "method" in problem.asked:
        fixed["method"] = problem.method.kind
    for name in [n for n in (*LET_GO, *problem.method_fixed, "method") if n in fixed]:
        gone = {"method", *problem.method_fixed} if name == "method" else {name}
        looser = problem.again({k: v for k, v in fixed.items() if k not in gone})
        other = Search(looser, search.rates)
        found = next((best for rung in rungs(looser) if (best := other.fastest(rung))), None)
        if found is not None:
            yield name, found


def _flag(name: str, found: Found) -> str:
    """Return the flag that asks for what was found."""
    if name == "method":
        return f"--method {found.choice.method.kind}"
    value = getattr(found.choice, name, None)
    if value is None:
        value = getattr(found.choice.method, name, None)
    if isinstance(value, Checkpointing):
        value = f"{value.layers}:{value.offload}" if value.offload != "none" else value.layers
    if value is None or isinstance(value, (tuple, bool)):
        return f"no --{name.replace('_', '-')}"
    return f"--{name.replace('_', '-')} {value}"


def _words(problem: SearchProblem, choice: Choice) -> str:
    base = "16-bit" if choice.quantization == "none" else choice.quantization
    layers = getattr(choice.method, "layers", None)
    fewer = (
        "" if layers is None else f", the last {layers} of {problem.shape.layers} blocks adapted"
    )
    return (
        f"{base} weights {PLACES[choice.placement]}, context {choice.context}, "
        f"{choice.checkpointing.layers} blocks checkpointed{fewer}"
    )
