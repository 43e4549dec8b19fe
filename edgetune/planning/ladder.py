"""What may be given up, in which order: each rung fixes the knobs that touch the result.

Neutral knobs move freely on every rung. The base is stored in fewer bits before it is streamed:
a 4-bit base costs little quality, streaming the 16-bit one several times the time (decision 9).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from edgetune.errors import UsageError
from edgetune.methods import Method, known_settings
from edgetune.planning.problem import SearchProblem
from edgetune.settings.spec import ComputeDtype, Placement, Quantization

LEAST_CONTEXT = 256
"""Rows are not made shorter than this on the planner's own account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """Costly knobs that are settled, and where the base may live."""

    method: Method
    context: int
    quantization: Quantization
    compute_dtype: ComputeDtype
    placements: tuple[Placement, ...]


def rungs(problem: SearchProblem) -> Iterator[Rung]:
    """Yield the rungs from the best to the last resort, without those the method refuses."""
    for rung in _all_rungs(problem):
        if not rung.method.refusals(
            problem.shape, context=rung.context, quantization=rung.quantization
        ):
            yield rung


def _all_rungs(problem: SearchProblem) -> Iterator[Rung]:
    offered = problem.capability
    placements = problem.options("placement", offered.placements)
    formats = problem.options("quantization", offered.quantizations)
    if "resident" in placements:
        yield from _in_formats(problem, formats[:-1], ("resident",))
    yield from _in_formats(problem, formats[-1:], placements)
    smallest = Rung(
        method=problem.method,
        context=problem.context,
        quantization=formats[-1],
        compute_dtype=problem.options("compute_dtype", offered.compute_dtypes)[-1],
        placements=placements,
    )
    for method in _fewer_layers(problem):
        smallest = replace(smallest, method=method)
        yield smallest
    for context in _shorter(problem):
        yield replace(smallest, context=context)


def _in_formats(
    problem: SearchProblem, formats: tuple[Quantization, ...], placements: tuple[Placement, ...]
) -> Iterator[Rung]:
    for quantization in formats:
        for dtype in problem.options("compute_dtype", problem.capability.compute_dtypes):
            yield Rung(
                method=problem.method,
                context=problem.context,
                quantization=quantization,
                compute_dtype=dtype,
                placements=placements,
            )


def _fewer_layers(problem: SearchProblem) -> Iterator[Method]:
    """Yield the method on half of the blocks, a quarter and an eighth, the last ones."""
    method = problem.method
    if "layers" not in known_settings(method.kind) or "layers" in problem.method_fixed:
        return
    for share in (2, 4, 8):
        layers = max(1, problem.shape.layers // share)
        fewer: Method = replace(method, layers=layers)  # type: ignore[type-var]
        try:
            fewer.tensors(problem.shape)
        except UsageError:  # the targets that were named are in other blocks
            return
        yield fewer


def _shorter(problem: SearchProblem) -> Iterator[int]:
    """Yield shorter contexts, unless a row would be refused or cut that nobody spoke of."""
    spoken = problem.facts is None or problem.facts.long_rows != "refuse"
    context = problem.context
    while spoken and "context" not in problem.fixed and context // 2 >= LEAST_CONTEXT:
        context //= 2
        yield context
