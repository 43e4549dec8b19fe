"""Why a choice was made, in words for someone who does it for the first time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgetune.choice import Choice
from edgetune.planning.ladder import Rung
from edgetune.planning.problem import SearchProblem
from edgetune.planning.search import Found, Search
from edgetune.planning.space import inputs_bytes
from edgetune.settings.spec import PAGED, Checkpointing
from edgetune.storage import FILE_FORMAT, file_kinds
from edgetune.units import format_seconds, precise_bytes

BITS = {"none": "16-bit", "int8": "8-bit", "q8": "8-bit", "nf4": "4-bit", "q4": "4-bit",
        "mxfp4": "4-bit", "nvfp4": "4-bit", "gguf": "quantized"}  # fmt: skip

PLACES = {
    "resident": "in memory",
    "host": "streamed from host memory",
    "disk": "streamed from disk",
}
"""Where the frozen blocks are, in words."""


WORTH = 0.98
"""Share of a step's seconds from which on it is not said what memory saved of them."""


def reasons_for(
    found: Found, problem: SearchProblem, search: Search, above: Sequence[Rung]
) -> Iterator[str]:
    """Yield a reason for everything that the program decided and that is not the plainest."""
    yield from _base(found, problem, search, above)
    yield from _published(found, problem)
    yield from _number_format(found, problem)
    yield from _placement(found, problem, search)
    yield from _vocabulary(found, problem)
    yield from _costly(found, problem)
    yield from _experts(found, problem)
    if problem.shape.tower:
        yield "what sees or hears in the model's file is neither read nor adapted"
    yield from _checkpointing(found, problem, search)
    yield from _tiles(found, problem, search)
    yield from _rows(found, problem)
    yield from _optimizer(found, problem)
    yield _peak(found, problem)


def _base(
    found: Found, problem: SearchProblem, search: Search, above: Sequence[Rung]
) -> Iterator[str]:
    chosen = found.choice.quantization
    if "quantization" in problem.fixed:
        return
    larger = next((r for r in reversed(above) if r.quantization != chosen), None)
    if larger is None:
        if chosen == FILE_FORMAT:
            yield f"weights in {file_kinds(problem.shape)} as in the file: nothing is rounded again"
        if chosen == "none" and problem.shape.published is None:
            yield f"weights in {problem.shape.dtype} as published: they fit, so nothing is rounded"
        return
    least = search.least(larger)
    if least is not None:
        yield (
            f"{BITS[chosen]} weights ({chosen}): {BITS[larger.quantization]} weights need at least "
            f"{precise_bytes(least.memory.peak_bytes)}; the budget is "
            f"{precise_bytes(problem.budget)}"
        )


def _experts(found: Found, problem: SearchProblem) -> Iterator[str]:
    """Say what of a mixture of experts is adapted."""
    loss = "pretraining's load-balancing loss is off"
    if found.choice.method.adapts_experts(problem.shape):
        yield (
            f"experts are adapted, as asked for; routers stay frozen, and {loss}: an expert learns "
            "from the tokens that are sent to it"
        )
    elif problem.shape.has_experts:
        yield (
            f"experts and routers stay frozen, and {loss}: only what every token goes through is "
            "adapted"
        )


def _published(found: Found, problem: SearchProblem) -> Iterator[str]:
    """Say what becomes of the matrices of a checkpoint that is quantized."""
    published, chosen = problem.shape.published, found.choice.quantization
    if published is None:
        return
    written = f"this checkpoint is quantized ({published.words})"
    if chosen == "none":
        yield f"{written}: unpacked to {problem.shape.dtype} as it is read, rounded no further"
    elif chosen == published.kept_as:
        yield f"{written}: its codes are used as they are, as {chosen}"
    else:
        yield f"{written}: unpacked as it is read, and rounded a second time to {chosen}"
    if published.merges_plain:
        yield (
            f"an adapter of it fits the quantized model; merged (--to hf), it becomes a model in "
            f"{problem.shape.dtype} that is not quantized"
        )


def _number_format(found: Found, problem: SearchProblem) -> Iterator[str]:
    choice = found.choice
    if choice.compute_dtype == "float16":
        yield "computing in float16, with loss scaling: this card has no bfloat16"
    if problem.device.kind != "cpu" or "compute_dtype" in problem.fixed:
        return
    if choice.compute_dtype == problem.capability.compute_dtypes[0]:
        faster = problem.device.multiplies_16bit
        yield (
            f"computing in {choice.compute_dtype}: "
            + ("this processor multiplies it faster" if faster else
               "exact, and this processor is no faster in 16 bits")
        )  # fmt: skip
    else:
        yield (
            f"computing in {choice.compute_dtype}: it halves the activations, which would not "
            "fit otherwise; results are rounded more"
        )


def _placement(found: Found, problem: SearchProblem, search: Search) -> Iterator[str]:
    choice = found.choice
    if choice.placement == "resident" or "placement" in problem.fixed:
        return
    resident = search.weigh(replace(choice, placement="resident"))
    least = search.least(_kept_resident(choice))
    needed = (resident if least is None else least).memory.peak_bytes
    place = "the host's memory" if choice.placement == "host" else "the disk"
    blocks = "one block" if problem.capability.streamed_blocks == 1 else "two blocks"
    yield (
        f"weights streamed from {place}, {blocks} at a time: "
        + (
            f"kept in memory they would need at least {precise_bytes(needed)}"
            if needed > problem.budget
            else "kept in memory they would leave little room to compute in"
        )
    )
    if search.rates.known:
        yield _price(found.seconds, resident.seconds)


def _kept_resident(choice: Choice) -> Rung:
    """Return the rung of a choice with its base in memory."""
    return Rung(
        method=choice.method,
        context=choice.context,
        quantization=choice.quantization,
        compute_dtype=choice.compute_dtype,
        placements=("resident",),
    )


def _price(seconds: float, resident: float) -> str:
    step = f"a step takes {format_seconds(seconds)}"
    if seconds < 1.05 * resident:
        return f"{step}, no longer than with resident weights: they arrive while it computes"
    return (
        f"this costs time: {step}; with resident weights it would take {format_seconds(resident)}"
    )


def _vocabulary(found: Found, problem: SearchProblem) -> Iterator[str]:
    choice = found.choice
    if choice.embedding == "disk" and "embedding" not in problem.fixed:
        yield "embedding read from disk: only the rows that are looked up, at little cost"
    if choice.head == "disk" and "head" not in problem.fixed:
        yield "head read from disk, a slice at a time: it is too large to keep in memory"


def _costly(found: Found, problem: SearchProblem) -> Iterator[str]:
    layers = getattr(found.choice.method, "layers", None)
    if layers is not None and "layers" not in problem.method_fixed:
        yield (
            f"only the last {layers} of {problem.shape.layers} blocks are adapted: "
            "nothing fits with more; the result may be slightly worse"
        )
    if found.choice.context < problem.context:
        yield (
            f"context {found.choice.context} instead of {problem.context}: nothing fits "
            "with more; the model never sees longer rows whole"
        )


def _checkpointing(found: Found, problem: SearchProblem, search: Search) -> Iterator[str]:
    kept = found.choice.checkpointing
    if "checkpointing" in problem.fixed:
        return
    yield from _bought(found, problem, search)
    if not kept.layers:
        return
    all_kept = search.weigh(replace(found.choice, checkpointing=Checkpointing(layers=0)))
    yield (
        f"{kept.layers} of {problem.shape.layers} blocks are computed twice (checkpointed): "
        f"keeping all they compute would need {precise_bytes(all_kept.memory.peak_bytes)}"
    )
    if kept.offload != "none":
        place = "host memory" if kept.offload == "host" else "the disk"
        size = inputs_bytes(found.choice, problem.shape)
        yield f"their inputs are offloaded to {place}: {precise_bytes(size)} there"


def _bought(found: Found, problem: SearchProblem, search: Search) -> Iterator[str]:
    """Say what the memory that blocks keep buys, where it is worth a word."""
    blocks, twice = problem.shape.layers, found.choice.checkpointing.layers
    every = replace(found.choice.checkpointing, layers=blocks)
    least = search.weigh(replace(found.choice, checkpointing=every))
    more = found.memory.peak_bytes - least.memory.peak_bytes
    if not search.rates.known or more <= 0 or found.seconds > WORTH * least.seconds:
        return
    some = "all blocks keep" if not twice else f"{blocks - twice} of {blocks} blocks keep"
    yield (
        f"{some} what they compute, for speed: {precise_bytes(more)} more, and a step takes "
        f"{format_seconds(found.seconds)}, {found.seconds / least.seconds:.2g} times as long as "
        "if none did"
    )


def _tiles(found: Found, problem: SearchProblem, search: Search) -> Iterator[str]:
    choice = found.choice
    if not choice.tile or "tile" in problem.fixed:
        return
    whole = search.weigh(replace(choice, tile=0))
    yield (
        f"each block is computed {choice.tile} tokens of a row at a time: computed at once it would "
        f"need {precise_bytes(whole.memory.peak_bytes)}; it does not change the result"
    )


def _rows(found: Found, problem: SearchProblem) -> Iterator[str]:
    choice = found.choice
    if {"micro_batch", "accumulation"} & problem.fixed.keys():
        return
    total = choice.micro_batch * choice.accumulation
    how = "all at once" if choice.accumulation == 1 else f"{choice.micro_batch} at a time"
    yield f"{total} rows a step, {how}: the fastest split that fits; it does not change the result"


def _optimizer(found: Found, problem: SearchProblem) -> Iterator[str]:
    if found.choice.optimizer == PAGED and "optimizer" not in problem.fixed:
        yield f"{PAGED}: the optimizer's state stays in the host's memory, which the update reads"
    elif found.choice.optimizer != "adamw" and "optimizer" not in problem.fixed:
        yield f"{found.choice.optimizer}: the optimizer's state takes a quarter of the memory"


def _peak(found: Found, problem: SearchProblem) -> str:
    phases = found.memory.phases
    when = {phases.save: "saving", phases.evaluate: "evaluating", phases.load: "loading",
            phases.train: "training"}[phases.peak]  # fmt: skip
    return (
        f"peak {precise_bytes(phases.peak)}, while {when}; "
        f"the budget is {precise_bytes(problem.budget)}"
    )
