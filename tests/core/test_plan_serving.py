"""Several adapters over one base: what they take, how many fit, and what is said of too many."""

from __future__ import annotations

import json

import pytest
from planning import GB, plan_of, processor, sized
from rows import Cli

from edgetune.errors import NothingFitsError
from edgetune.memory.serving import adapter_bytes
from edgetune.methods import build
from edgetune.workflows.several import serving_of, serving_text, with_room

PLAN = plan_of("smollm2-360m", sized(processor(), 4 * GB))
LORA = build("lora", {"rank": 8})
PREFIX = build("prefix", {})


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_adapters_are_counted_as_they_are_saved() -> None:
    shape = PLAN.shape
    assert adapter_bytes(shape, LORA) == 4 * LORA.parameters(shape)
    keys = sum(2 * block.keys for block in shape.blocks)
    assert adapter_bytes(shape, PREFIX) == 4 * 20 * keys  # not the network that trained it
    dora = build("dora", {"rank": 8})
    outputs = sum(x.outputs for block in shape.blocks for x in block.linears)
    assert adapter_bytes(shape, dora) == 4 * (dora.parameters(shape) + outputs)


def test_what_fits_is_what_is_said_to_fit() -> None:
    budget = PLAN.device.budget_bytes
    few = serving_of(PLAN, [LORA] * 3)
    assert few.first(budget) == 3
    most = 3 + few.further(budget)
    assert with_room(PLAN, serving_of(PLAN, [LORA] * most)).memory.peak_bytes <= budget
    too_many = serving_of(PLAN, [LORA] * (most + 1))
    assert too_many.first(budget) == most
    with pytest.raises(NothingFitsError, match=rf"{most + 1} adapters .* {most} of them fit"):
        with_room(PLAN, too_many)
    assert f"room for {few.further(budget):,} more" in serving_text(PLAN, few)


def test_passes_of_other_methods_are_part_of_it() -> None:
    prompts = build("prompt", {"prompt_length": 200})
    alone, mixed = serving_of(PLAN, [LORA]), serving_of(PLAN, [LORA, prompts])
    assert mixed.row > alone.row
    assert mixed.peak_bytes - alone.peak_bytes > mixed.adapters[1]


def test_a_plan_counts_so_many_adapters(cli: Cli) -> None:
    asked = ("plan", "--model", "llama-7b", "--device", "rtx-4060-laptop")
    told = json.loads(cli(*asked, "--adapters", "2", "--json").out)["serving"]
    assert len(told["adapters"]) == 2
    called = cli(*asked, "--adapters", "2")
    assert "more like the largest" in " ".join(called.out.split())
    called = cli(*asked, "--adapters", "9999")
    assert called.code == 3
    assert "Name fewer" in called.err
