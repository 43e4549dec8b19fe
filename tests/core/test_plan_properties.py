"""What must hold for every device, model and request."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning import GB, card, plan_of, processor, shape_of, sized

from edgetune.choice import Choice
from edgetune.device.capability import capability_of
from edgetune.errors import NothingFitsError
from edgetune.memory import Platform, estimate
from edgetune.methods.lora import Lora
from edgetune.planning import Plan, make_plan
from edgetune.planning.ladder import rungs
from edgetune.planning.problem import make_problem
from edgetune.planning.search import Search
from edgetune.planning.space import CHUNKS
from edgetune.settings.spec import Checkpointing
from edgetune.speed import rates_of

MODELS = st.sampled_from(["smollm2-135m", "llama-3.2-1b", "qwen2.5-7b", "gemma-2-2b", "pythia-1b"])
DEVICES = st.sampled_from([card(), processor()])
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.filter_too_much])


def plan_or_none(model: str, device: object, usable: int, **fixed: object) -> Plan | None:
    try:
        return plan_of(model, sized(device, usable), **fixed)
    except NothingFitsError:
        return None


def quality(plan: Plan) -> tuple[float, ...]:
    """Return how much a plan keeps of what was wanted: larger is better."""
    choice = plan.choice
    kind = plan.device.kind
    capability = capability_of(card() if kind == "cuda" else processor())
    layers = choice.method.layers or plan.shape.layers
    return (
        choice.context,
        layers,
        -capability.quantizations.index(choice.quantization),
        -capability.compute_dtypes.index(choice.compute_dtype),
    )


@FEW
@given(model=MODELS, device=DEVICES, usable=st.integers(GB // 2, 24 * GB))
def test_never_over_budget(model: str, device: object, usable: int) -> None:
    plan = plan_or_none(model, device, usable)
    if plan is not None:
        assert plan.memory.peak_bytes <= usable == plan.device.budget_bytes
        assert plan.memory.peak_bytes == plan.memory.phases.peak
        assert plan.memory.phases.train == plan.memory.parts.total


@FEW
@given(
    model=MODELS,
    device=DEVICES,
    usable=st.integers(GB // 2, 16 * GB),
    more=st.integers(1, 8 * GB),
)
def test_more_memory_is_never_worse_or_slower(
    model: str, device: object, usable: int, more: int
) -> None:
    before = plan_or_none(model, device, usable)
    after = plan_or_none(model, device, usable + more)
    if before is None:
        return
    assert after is not None
    assert quality(after) >= quality(before)
    if quality(after) == quality(before):
        assert after.time.seconds_per_step <= before.time.seconds_per_step


@settings(max_examples=5, deadline=None)
@given(
    model=st.sampled_from(["smollm2-135m", "gemma-2-2b", "pythia-1b"]),
    device=DEVICES,
    usable=st.integers(GB // 2, 6 * GB),
    rows=st.sampled_from([1, 3, 4]),
)
def test_nothing_that_fits_is_faster(model: str, device: Any, usable: int, rows: int) -> None:
    request = make_problem(
        sized(device, usable), shape_of(model), fixed={"micro_batch": rows}, training={},
        facts=None, memory=None,
    )  # fmt: skip
    search = Search(request, rates_of(request.device))
    for rung in islice(rungs(request), 6):
        every = (
            search.weigh(replace(search.space.with_layers(start, layers), loss_chunk=chunk))
            for start in search.space.starts(rung)
            for chunk in CHUNKS
            for layers in range(search.space.ends(start)[0].layers, request.shape.layers + 1)
        )
        fitting = [found.seconds for found in every if found.memory.peak_bytes <= usable]
        found = search.fastest(rung)
        assert (found.seconds if found else None) == min(fitting, default=None)


@FEW
@given(model=MODELS, device=DEVICES, usable=st.integers(2 * GB, 16 * GB))
def test_a_function_of_its_inputs(model: str, device: object, usable: int) -> None:
    first, second = (plan_or_none(model, device, usable) for _ in range(2))
    assert first == second


@FEW
@given(
    model=MODELS,
    kind=st.sampled_from(["cpu", "cuda", "mlx"]),
    knob=st.sampled_from(["rank", "context", "micro_batch", "layers", "accumulation"]),
    start=st.integers(1, 48),
    step=st.integers(1, 48),
    checkpointed=st.integers(0, 12),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    quantization=st.sampled_from(["none", "nf4"]),
    multiplies=st.booleans(),
)
def test_bytes_rise_with_what_is_asked_for(
    model: str, kind: str, knob: str, start: int, step: int, checkpointed: int,
    dtype: str, quantization: str, multiplies: bool,
) -> None:  # fmt: skip
    formats = {"nf4": "q4"} if kind == "mlx" else {}

    def peak(value: int) -> int:
        shape = shape_of(model)
        sizes = {"rank": 8, "context": 64, "micro_batch": 2, "accumulation": 2}
        sizes[knob] = 16 * value if knob == "context" else value
        if knob == "layers":
            shape = replace(shape, blocks=(shape.blocks * value)[:value])
        choice = Choice(
            method=Lora(rank=sizes["rank"]), quantization=formats.get(quantization, quantization),
            checkpointing=Checkpointing(layers=checkpointed), placement="resident",
            optimizer="adamw", compute_dtype=dtype, context=sizes["context"],
            micro_batch=sizes["micro_batch"], accumulation=sizes["accumulation"], loss_chunk=64,
        )  # fmt: skip
        platform = Platform(kind=kind, multiplies_16bit=multiplies)
        return estimate(shape, choice, platform).peak_bytes

    assert peak(start) <= peak(start + step)


def test_every_knob_that_is_given_is_kept() -> None:
    given_knobs = {
        "rank": 5, "quantization": "nf4", "checkpointing": Checkpointing(layers=3),
        "optimizer": "adamw-8bit", "context": 320, "micro_batch": 3, "accumulation": 5,
        "loss_chunk": 77, "compute_dtype": "bfloat16", "placement": "resident", "targets": ("mlp",),
    }  # fmt: skip
    choice = plan_of("llama-3.2-1b", processor(), **given_knobs).choice
    for name, value in given_knobs.items():
        found = getattr(choice, name, None) if hasattr(choice, name) else None
        assert (found if found is not None else getattr(choice.method, name)) == value


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16])
def test_rows_of_a_step_are_kept(rows: int) -> None:
    choice = plan_of("smollm2-135m", processor(), micro_batch=rows).choice
    assert choice.micro_batch == rows
    assert choice.micro_batch * choice.accumulation >= min(8, rows)


def test_no_plan_without_a_device_rate() -> None:
    device = replace(processor(), rate_16bit=0.0, rate_32bit=0.0)
    plan = make_plan(device, "tiny", shape_of("tiny"), fixed={}, training={})
    assert plan.time.seconds_per_step == 0.0
