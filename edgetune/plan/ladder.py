"""What may be given up, in which order: each rung fixes the knobs that touch the result.

Neutral knobs move freely on every rung. The base is stored in fewer bits before it is streamed:
a 4-bit base costs little quality, streaming the 16-bit one several times the time (decision 9).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from edgetune.errors import UsageError
from edgetune.methods import Method, known_settings
from edgetune.plan.request import Request
from edgetune.spec import ComputeDtype, Placement, Quantization

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


def rungs(request: Request) -> Iterator[Rung]:
    """Yield the rungs from the best to the last resort, without those the method refuses."""
    for rung in _all_rungs(request):
        if not rung.method.refusals(
            request.shape, context=rung.context, quantization=rung.quantization
        ):
            yield rung


def _all_rungs(request: Request) -> Iterator[Rung]:
    offered = request.capability
    placements = request.options("placement", offered.placements)
    formats = request.options("quantization", offered.quantizations)
    if "resident" in placements:
        yield from _in_formats(request, formats[:-1], ("resident",))
    yield from _in_formats(request, formats[-1:], placements)
    smallest = Rung(
        method=request.method,
        context=request.context,
        quantization=formats[-1],
        compute_dtype=request.options("compute_dtype", offered.compute_dtypes)[-1],
        placements=placements,
    )
    for method in _fewer_layers(request):
        smallest = replace(smallest, method=method)
        yield smallest
    for context in _shorter(request):
        yield replace(smallest, context=context)


def _in_formats(
    request: Request, formats: tuple[Quantization, ...], placements: tuple[Placement, ...]
) -> Iterator[Rung]:
    for quantization in formats:
        for dtype in request.options("compute_dtype", request.capability.compute_dtypes):
            yield Rung(
                method=request.method,
                context=request.context,
                quantization=quantization,
                compute_dtype=dtype,
                placements=placements,
            )


def _fewer_layers(request: Request) -> Iterator[Method]:
    """Yield the method on half of the blocks, a quarter and an eighth, the last ones."""
    method = request.method
    if "layers" not in known_settings(method.kind) or "layers" in request.method_fixed:
        return
    for share in (2, 4, 8):
        layers = max(1, request.shape.layers // share)
        fewer: Method = replace(method, layers=layers)  # type: ignore[type-var]
        try:
            fewer.tensors(request.shape)
        except UsageError:  # the targets that were named are in other blocks
            return
        yield fewer


def _shorter(request: Request) -> Iterator[int]:
    """Yield shorter contexts, unless a row would be refused or cut that nobody spoke of."""
    spoken = request.facts is None or request.facts.long_rows != "refuse"
    context = request.context
    while spoken and "context" not in request.fixed and context // 2 >= LEAST_CONTEXT:
        context //= 2
        yield context
