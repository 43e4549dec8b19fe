"""The instructive neighbours of a choice: what a size up would have cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from edgetune.choice import Choice
from edgetune.planning.ladder import Rung
from edgetune.planning.plan import Alternative
from edgetune.planning.problem import SearchProblem
from edgetune.planning.search import Found, Search
from edgetune.settings.spec import Checkpointing, Quantization, to_plain
from edgetune.units import precise_bytes


def alternatives(found: Found, problem: SearchProblem, search: Search) -> Iterator[Alternative]:
    """Yield the neighbours that were not taken, the most telling first."""
    for knobs, other in _others(found, problem, search):
        yield Alternative(
            choice={name: to_plain(getattr(other.choice, name)) for name in knobs},
            peak_bytes=other.memory.peak_bytes,
            because=_because(found, other, problem, search),
        )


def _others(
    found: Found, problem: SearchProblem, search: Search
) -> Iterator[tuple[tuple[str, ...], Found]]:
    """Yield neighbours, each with the knobs in which it differs.

    A larger format is given with the least that it needs, which says nothing of its time.
    """
    choice, free = found.choice, _free(problem)
    formats = problem.options("quantization", problem.capability.quantizations)
    at = formats.index(choice.quantization)
    if at and (least := _least(search, choice, formats[at - 1])):
        yield ("quantization",), least
    if choice.placement != "resident" and free("placement"):
        yield ("placement",), search.weigh(replace(choice, placement="resident"))
    if choice.checkpointing.layers and free("checkpointing"):
        none = Checkpointing(layers=0)
        yield ("checkpointing",), search.weigh(replace(choice, checkpointing=none))
    if choice.accumulation > problem.ranks and free("micro_batch", "accumulation"):
        twice, half = 2 * choice.micro_batch, choice.accumulation // 2
        more = replace(choice, micro_batch=twice, accumulation=half)
        yield ("micro_batch", "accumulation"), search.weigh(more)
    if choice.optimizer != "adamw" and free("optimizer"):
        yield ("optimizer",), search.weigh(replace(choice, optimizer="adamw"))
    if 2 * choice.context <= problem.shape.max_context and free("context"):
        yield ("context",), search.weigh(replace(choice, context=2 * choice.context))


def _free(problem: SearchProblem) -> Callable[..., bool]:
    def free(*names: str) -> bool:
        return not problem.fixed.keys() & set(names)

    return free


def _least(search: Search, choice: Choice, quantization: Quantization) -> Found | None:
    """Return the smallest choice with resident weights in another format."""
    rung = Rung(
        method=choice.method,
        context=choice.context,
        quantization=quantization,
        compute_dtype=choice.compute_dtype,
        placements=("resident",),
    )
    return search.least(rung)


def _because(found: Found, other: Found, problem: SearchProblem, search: Search) -> str:
    fits = other.memory.peak_bytes <= problem.budget
    room = "it would fit" if fits else f"the budget is {precise_bytes(problem.budget)}"
    needs = precise_bytes(other.memory.peak_bytes)
    if other.choice.quantization != found.choice.quantization:
        return f"needs at least {needs}; {room}"
    return f"needs {needs}; {room}{_time(found, other, search)}"


def _time(found: Found, other: Found, search: Search) -> str:
    if not search.rates.known:
        return ""
    share = other.seconds / found.seconds
    if 0.97 < share < 1.03:
        return "; a step would take just as long"
    return f"; a step would take {share:{'.0f' if share >= 10 else '.2g'}} times as long"
