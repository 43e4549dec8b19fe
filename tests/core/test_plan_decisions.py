"""What the planner chooses and says: the cases that people meet first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planning import GB, card, plan_of, processor, shape_of, sized

from edgetune.device.profiles import profile_device
from edgetune.errors import NothingFitsError, UsageError
from edgetune.memory import estimate
from edgetune.methods import build
from edgetune.planning import DataFacts, Plan, moved
from edgetune.planning.capability import platform_of
from edgetune.planning.defaults import PATIENCE, context_for, rank_for, training_for
from edgetune.settings.spec import Checkpointing
from edgetune.units import precise_bytes


def facts(rows: int = 500, longest: int = 300, **more: Any) -> DataFacts:
    return DataFacts(path="rows.jsonl", rows=rows, longest=longest, tokens=rows * 200, **more)


def why(plan: Plan) -> str:
    return "\n".join(plan.reasons)


def test_seven_billion_on_eight_gigabytes() -> None:
    plan = plan_of("llama-7b", card())
    assert plan.choice.method.kind == "lora"
    assert plan.choice.quantization == "int8"
    assert plan.choice.placement == "resident"
    assert plan.choice.context >= 2048
    assert "8-bit weights (int8): 16-bit weights need at least" in why(plan)


def test_what_of_a_mixture_is_adapted_is_said() -> None:
    plain = plan_of("qwen3-30b-a3b", card(), rank=2, context=512)
    assert "experts and routers stay frozen" in why(plain)
    own = plan_of("qwen3-30b-a3b", card(), rank=2, context=512, targets=("attention", "experts"))
    assert "experts are adapted, as asked for; routers stay frozen" in why(own)
    assert "experts and routers" not in why(own)


@pytest.mark.parametrize(("usable", "context"), [
    (8, 8_916), (12, 65_544), (16, 122_172), (24, 131_072),
])  # fmt: skip
def test_long_contexts_are_computed_in_tiles(usable: int, context: int) -> None:
    device = sized(card(), int(usable * GB * 0.95))  # the display and other programs have the rest
    plan = plan_of("llama-3.1-8b", device, rank=32, context=context)
    assert plan.choice.tile
    assert plan.choice.checkpointing.layers == 32
    assert plan.memory.peak_bytes <= device.usable_bytes
    assert "tokens of a row at a time" in why(plan)
    size = 32 * context * 4096 * 2
    assert f"{precise_bytes(size)} there" in why(plan)


def test_a_mac_computes_long_contexts_in_tiles() -> None:
    device = profile_device("m2-16gb")
    plan = plan_of("llama-3.1-8b", device, rank=32, context=65536)
    assert plan.choice.tile
    assert plan.memory.peak_bytes <= device.usable_bytes
    assert "tokens of a row at a time" in why(plan)
    with pytest.raises(NothingFitsError):
        plan_of("llama-3.1-8b", device, rank=32, context=65536, tile=0)


def test_a_tile_is_taken_as_it_is_asked_for_or_refused() -> None:
    assert plan_of("llama-3.2-1b", card(), tile=256).choice.tile == 256
    for tile in (100, 32):
        with pytest.raises(UsageError, match="power of two"):
            plan_of("llama-3.2-1b", card(), tile=tile)
    none = Checkpointing(layers=0)
    with pytest.raises(UsageError, match="--checkpointing none leaves none"):
        plan_of("llama-3.2-1b", card(), tile=256, checkpointing=none)
    assert not plan_of("llama-3.2-1b", card(), tile=0, checkpointing=none).choice.tile
    with pytest.raises(UsageError, match="all blocks of this falcon_h1 model are computed whole"):
        plan_of("falcon-h1-0.5b", card(), tile=256)
    assert plan_of("llama-3.2-1b", profile_device("m2-16gb"), tile=1024).choice.tile == 1024
    assert plan_of("llama-3.2-1b", profile_device("m2-16gb"), tile=0).choice.tile == 0


def test_three_gigabytes_are_streamed_into() -> None:
    plan = plan_of("llama-7b", card(), memory=3 * GB)
    assert plan.choice.placement == "host"
    assert "streamed from the host's memory" in why(plan)
    assert plan.memory.peak_bytes <= 3 * GB


def test_one_gigabyte_is_refused_with_the_nearest_that_fits() -> None:
    with pytest.raises(NothingFitsError, match="The nearest that would fit: --memory") as refused:
        plan_of("llama-7b", card(), memory=GB)
    needed = int(str(refused.value).split("--memory ")[1].split("MB")[0]) * 10**6
    assert plan_of("llama-7b", card(), memory=needed).fits


def test_seventy_billion_exists_and_says_what_it_costs() -> None:
    plan = plan_of("llama-3.1-70b", card())
    assert plan.choice.placement in {"host", "disk"}
    assert "a step" in why(plan)
    assert plan.time.seconds_per_step > 0


def test_a_small_model_stays_as_published() -> None:
    choice = plan_of("qwen2.5-0.5b", profile_device("rtx-4090")).choice
    assert (choice.quantization, choice.placement, choice.optimizer) == (
        "none",
        "resident",
        "adamw",
    )
    assert choice.checkpointing.layers == 0


def test_float32_first_on_a_processor_and_bfloat16_where_it_is_needed() -> None:
    wide = plan_of("smollm2-135m", processor())
    assert wide.choice.compute_dtype == "float32"
    assert "computing in float32: exact" in why(wide)
    fast = replace(processor(), multiplies_16bit=True)
    assert plan_of("smollm2-135m", fast).choice.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("rows", "rank"), [(30, 8), (1_999, 8), (5_000, 16), (50_000, 32), (500_000, 128)]
)
def test_rank_by_rows(rows: int, rank: int) -> None:
    assert rank_for(facts(rows)).value == rank


def test_context_holds_the_longest_row() -> None:
    shape = shape_of("llama-7b")
    assert context_for(shape.max_context, facts(longest=301)).value == 320
    assert context_for(shape.max_context, facts(longest=2048)).value == 2048
    assert context_for(shape.max_context, facts(longest=90_000, long_rows="split")).value == 2048
    assert context_for(shape.max_context, None).value == 2048


def test_small_data_is_seen_more_often() -> None:
    shape, lora = shape_of("llama-7b"), build("lora", {})
    assert training_for(shape, lora, {}, facts(100))[0].epochs == 10
    assert training_for(shape, lora, {}, facts(100_000))[0].epochs == 3
    assert training_for(shape, lora, {"steps": 5}, facts(100))[0].epochs == 3


def test_few_rows_are_trained_until_the_validation_loss_falls_no_more() -> None:
    shape, lora = shape_of("llama-7b"), build("lora", {})
    small, reasons = training_for(shape, lora, {}, facts(100))
    assert small.patience == PATIENCE
    assert any("--patience 0 trains all 10 epochs" in reason for reason in reasons)
    asked = [{"steps": 5}, {"epochs": 10.0}, {"patience": 0}]
    found = [training_for(shape, lora, settings, facts(100))[0] for settings in asked]
    found.append(training_for(shape, lora, {}, facts(100_000))[0])
    found.append(training_for(shape, lora, {}, replace(facts(100), validation=0))[0])
    assert not any(training.patience for training in found)
    with pytest.raises(UsageError, match="--patience 2 needs validation rows"):
        training_for(shape, lora, {"patience": 2}, replace(facts(100), validation=0))


def test_nothing_is_cut_unless_somebody_said_so() -> None:
    small = sized(card(), 1_250_000_000)
    long = facts(longest=2000)
    with pytest.raises(NothingFitsError):
        plan_of("llama-7b", small, long)
    shorter = plan_of("llama-7b", small, facts(longest=2000, long_rows="cut"))
    assert shorter.choice.context < 2000
    assert f"context {shorter.choice.context} instead of 2016" in why(shorter)


def test_the_nearest_lets_go_of_what_was_fixed() -> None:
    with pytest.raises(NothingFitsError, match="--quantization int8"):
        plan_of("llama-7b", card(), quantization="none", placement="resident")


def test_all_is_every_block() -> None:
    kept = plan_of("llama-3.2-1b", card(), checkpointing="all").choice.checkpointing
    assert kept == Checkpointing(layers=16)
    kept = plan_of("llama-3.2-1b", card(), checkpointing="all:host").choice.checkpointing
    assert kept == Checkpointing(layers=16, offload="host")


@pytest.mark.parametrize(
    ("fixed", "words"),
    [
        ({"checkpointing": Checkpointing(layers=40)}, "the model has 16 blocks"),
        ({"context": 200_000}, "longer than the 131072 tokens"),
        ({"micro_batch": 0}, "--micro-batch must be 1 or more"),
        ({"quantization": "q4"}, "Supported: none, int8, nf4"),
        ({"layers": 17}, "the model has 16 blocks"),
        ({"compute_dtype": "float32"}, "Supported: bfloat16"),
        ({"method": "lora", "bottleneck": 3}, "has no setting bottleneck"),
    ],
)
def test_nonsense_is_refused(fixed: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_of("llama-3.2-1b", card(), **fixed)


def test_all_nonsense_is_named_at_once() -> None:
    with pytest.raises(UsageError) as refused:
        plan_of("llama-3.2-1b", card(), context=200_000, quantization="q4")
    assert "200000" in str(refused.value)
    assert "q4" in str(refused.value)


def test_neighbours_are_few_and_different() -> None:
    alternatives = plan_of("llama-7b", card()).alternatives
    assert 3 <= len(alternatives) <= 6
    assert len({str(item.choice) for item in alternatives}) == len(alternatives)
    assert {"quantization": "none"} in [item.choice for item in alternatives]


def test_streaming_says_whether_resident_weights_would_fit() -> None:
    plan = plan_of("llama-7b", card(), memory=3 * GB)
    assert "two blocks at a time: kept in memory they would need" in why(plan)
    for line in plan.reasons:
        if "kept in memory they would need" in line:
            needed = float(line.split("would need at least ")[1].split(" GB")[0])
            assert needed > 3


def test_training_the_last_norm_alone_is_timed() -> None:
    plan = plan_of("llama-3.2-1b", card(), method="norm", norms=("norm",))
    assert plan.time.seconds_per_step > 0


def test_a_card_without_bfloat16_attends_in_chunks() -> None:
    shape = shape_of("llama-3.2-1b")
    kept = Checkpointing(layers=shape.layers)
    choice = plan_of("llama-3.2-1b", card(), context=8192, checkpointing=kept).choice
    peaks = [
        estimate(shape, choice, platform_of(profile_device(name))).peak_bytes
        for name in ("rtx-3060", "rtx-2060")
    ]

    assert peaks[1] > peaks[0]


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_plan_that_is_moved_counts_what_the_engine_holds_there(multiplies: bool) -> None:
    here = replace(processor(), multiplies_16bit=multiplies)
    there = replace(processor(), multiplies_16bit=not multiplies)
    fixed = {"compute_dtype": "bfloat16", "context": 512, "micro_batch": 2}
    plan = plan_of("smollm2-135m", there, **fixed)
    found = moved(plan, here)
    assert found.choice == plan.choice
    assert found.memory != plan.memory
    assert found.device.multiplies_16bit == multiplies
    assert moved(plan, there) == plan
    assert moved(found, there) == plan
    assert found.memory == estimate(plan.shape, plan.choice, platform_of(here))
