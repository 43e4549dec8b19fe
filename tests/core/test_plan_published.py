"""Plans for checkpoints that are published quantized."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planning import GB, card, processor, shape_of, sized

from edgetune.device import Device
from edgetune.device.profiles import profile_device
from edgetune.errors import UsageError
from edgetune.memory.weights import load_bytes
from edgetune.planning import Plan, make_plan
from edgetune.shape import ModelShape, Published

NF4 = Published(
    words="bitsandbytes' NF4", kept_as="nf4", vocabulary=False, merges_plain=True, unpacking_bytes=7
)
MLX4 = replace(NF4, words="MLX's whole numbers in 4 bits", kept_as="q4", vocabulary=True)
FP8 = replace(NF4, words="FP8 in blocks of 128x128", kept_as=None)


def plan_for(device: Device, published: Published, **fixed: Any) -> Plan:
    shape = replace(shape_of("llama-7b"), published=published)
    return make_plan(device, "folder", shape, fixed=fixed, training={})


def why(plan: Plan) -> str:
    return "\n".join(plan.reasons)


def test_what_fits_in_16_bits_is_unpacked() -> None:
    plan = plan_for(sized(card(), 64 * GB), NF4)

    assert plan.choice.quantization == "none"
    assert "quantized (bitsandbytes' NF4): unpacked to float16 as it is read" in why(plan)
    assert "as published: they fit" not in why(plan)
    assert "merged (--to hf), it becomes a model in float16 that is not quantized" in why(plan)


def test_its_own_format_comes_before_a_larger_one_that_rounds() -> None:
    device = sized(card(), 11 * GB)  # 8 bits would fit

    assert plan_for(device, FP8).choice.quantization == "int8"
    plan = plan_for(device, NF4)
    assert plan.choice.quantization == "nf4"
    assert "its codes are used as they are, as nf4" in why(plan)
    assert plan_for(device, NF4, quantization="int8").choice.quantization == "int8"


def test_another_format_is_said_to_round_again() -> None:
    plan = plan_for(sized(card(), 11 * GB), FP8)

    assert "FP8 in blocks of 128x128): unpacked as it is read, and rounded a second" in why(plan)


def test_mlx_takes_its_own_codes() -> None:
    mac = profile_device("m2-8gb")

    assert plan_for(mac, MLX4).choice.quantization == "q4"
    assert "its codes are used as they are, as q4" in why(plan_for(mac, MLX4))
    assert plan_for(card(), MLX4).choice.quantization == "nf4"


@pytest.mark.parametrize("name", ["embedding", "head"])
def test_rows_that_are_packed_are_not_read_one_by_one(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name} disk reads rows .* --{name} resident works"):
        plan_for(processor(), MLX4, **{name: "disk"})
    assert getattr(plan_for(processor(), NF4, **{name: "disk"}).choice, name) == "disk"
    for device in (card(), processor()):
        tight = plan_for(sized(device, 6 * GB), MLX4)
        assert getattr(tight.choice, name) == "resident"


def test_unpacking_is_a_part_of_loading() -> None:
    shape: ModelShape = shape_of("llama-7b")
    more = replace(shape, published=replace(FP8, unpacking_bytes=1000))

    assert load_bytes(more, "none") == load_bytes(shape, "none") + 1000
