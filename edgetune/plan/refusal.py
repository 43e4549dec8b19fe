"""What to say when nothing fits: how much is missing, and the nearest thing that would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgetune.choice import Choice
from edgetune.plan.ladder import rungs
from edgetune.plan.reasons import PLACES
from edgetune.plan.request import Request
from edgetune.plan.search import Found, Search
from edgetune.units import format_bytes, precise_bytes

LET_GO = (
    "quantization", "checkpointing", "micro_batch", "accumulation", "loss_chunk", "optimizer",
    "placement", "compute_dtype", "context",
)  # fmt: skip
"""Fixed knobs in the order in which it is asked whether something fits without them."""


def refusal(ref: str, request: Request, search: Search) -> str:
    """Return why nothing fits and what would."""
    least = _least(request, search)
    budget = precise_bytes(request.budget)
    if least is None:
        return f"{ref} cannot be placed: {budget} may be used. {_free(request)}"
    needs = precise_bytes(least.memory.peak_bytes)
    asked = " as asked for" if request.fixed else ""
    return (
        f"{ref}{asked} needs {needs} at the least ({_words(least.choice)}), and {budget} may be "
        f"used. The nearest that would fit: {_nearest(request, search, least)}."
    )


def _least(request: Request, search: Search) -> Found | None:
    found = [least for rung in rungs(request) if (least := search.least(rung))]
    return min(found, key=lambda least: least.memory.peak_bytes, default=None)


def _nearest(request: Request, search: Search, least: Found) -> str:
    """Return flags: those that keep the memory first, then more memory."""
    more = f"--memory {_rounded_up(least.memory.peak_bytes)}MB with {_words(least.choice)}"
    for name, found in _without(request, search):
        value = getattr(found.choice, name)
        value = getattr(value, "layers", value)
        flag = f"--{name.replace('_', '-')} {value}"
        return f"{flag} ({format_bytes(found.memory.peak_bytes)}), or {more}"
    return more


def _without(request: Request, search: Search) -> Iterator[tuple[str, Found]]:
    for name in LET_GO:
        if name in request.fixed:
            freed = {k: v for k, v in request.fixed.items() if k != name}
            looser = replace(request, fixed=freed)
            other = Search(looser, search.rates)
            found = next((best for rung in rungs(looser) if (best := other.fastest(rung))), None)
            if found is not None:
                yield name, found


def _free(request: Request) -> str:
    return f"The host's memory ({format_bytes(request.device.host_free_bytes)}) is too small too."


def _words(choice: Choice) -> str:
    base = "16-bit" if choice.quantization == "none" else choice.quantization
    return (
        f"{base} weights {PLACES[choice.placement]}, context {choice.context}, "
        f"{choice.checkpointing.layers} blocks checkpointed"
    )


def _rounded_up(size: int) -> int:
    return -(-size // 10**6)
