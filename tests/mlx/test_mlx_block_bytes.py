"""A block's bytes on MLX: what its text makes of a graph, against what the engine holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from block_bytes import Held, measured, planned
from plan_memory import NARROW, NETWORK, REST, Case, make, opened

from edgetune.memory.block_pass import BlockPass
from edgetune.memory.lazy.evaluation import AHEAD
from edgetune.methods.planned import BlockKind

SMALL = 24576
"""Bytes of positions, scalars and what a router chose."""

CASES = (
    Case(model="untied", context=320),
    Case(model="tied", context=64, fixed={"micro_batch": 2, "method": "dora"}),
    *REST,
    Case(model="untied", context=64, fixed={"method": "mam"}),
    Case(model="gpt2", context=128, fixed={"method": "adapter"}),
    Case(model="narrow", context=128, fixed=NARROW | {"method": "vera"}),
    Case(model="narrow", context=64, fixed={"quantization": "q4", "method": "llama-adapter"}),
    Case(model="capped", context=64, fixed={"method": "full"}),
    Case(model="parallel", context=128, fixed={"method": "bitfit"}),
    Case(model="inclined", context=320, fixed={"method": "prefix"}),
    Case(model="inclined", context=320, fixed=NETWORK),
    Case(model="curved", context=192),
    Case(model="convolving", context=96, fixed={"method": "lora-fa"}),
    Case(model="correcting", context=192),
    Case(model="scanning", context=192),
    Case(model="flanked", context=128),
    Case(model="halved", context=128),
    Case(model="streaming", context=192, checkpointed=True),
    Case(
        model="streaming", context=64, checkpointed=True, fixed={"micro_batch": 2, "method": "full"}
    ),
    Case(model="mixed", context=128, fixed={"quantization": "mxfp4"}),
    Case(model="sinking", context=320),
    Case(model="mixed", context=128, fixed={"targets": ("experts",)}),
    Case(model="sinking", context=64, fixed={"targets": ("experts",), "method": "lora-fa"}),
    Case(model="beside", context=128, fixed={"method": "norm"}),
    Case(model="ungated", context=128, fixed={"targets": ("attention", "experts")}),
    Case(model="convolving", context=320, checkpointed=True, fixed={"tile": 128}),
    Case(model="tied", context=320, checkpointed=True, fixed={"tile": 128, "micro_batch": 2}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_block_holds_what_its_text_makes_of_a_graph(case: Case, folder: Path) -> None:
    there = folder / case.model
    model, plan = opened(case, there if there.exists() else make(case.model, folder))
    least, most = planned(model, plan, ahead=0), planned(model, plan, ahead=AHEAD)
    layers = [kind.layer for kind, _ in least]
    # a thread of MLX's that is stopped between computing and letting go holds more: not twice
    told = [_apart(measured(model, plan, layers), least, most)]
    if told[0]:
        told.append(_apart(measured(model, plan, layers), least, most))
    assert not all(told), told


def _apart(
    found: dict[int, Held],
    least: list[tuple[BlockKind, BlockPass]],
    most: list[tuple[BlockKind, BlockPass]],
) -> list[str]:
    """Return which bytes are not those of a graph of which nothing, or all that may be, is queued."""
    return [
        f"layer {kind.layer}, {name}: {low} <= {held} <= {high}"
        for (kind, at_least), (_, at_most) in zip(least, most, strict=True)
        for name, low, held, high in (
            ("kept", at_most.kept, found[kind.layer].kept, at_most.kept),
            *(
                (name, *(getattr(x, name) for x in (at_least, found[kind.layer], at_most)))
                for name in ("plain", "forward", "again")
            ),
        )
        if not low - SMALL <= held <= high + SMALL
    ]
