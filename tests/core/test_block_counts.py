"""What the text of blocks takes when it is run over values that are only counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning import processor, shape_of

from edgetune.methods import build
from edgetune.methods.base import Method
from edgetune.planning import make_plan
from edgetune.settings.spec import Checkpointing
from edgetune.shape import ModelShape
from edgetune.speed import TimeModel, rates_of
from edgetune.speed.blocks import Counts, Works
from edgetune.speed.rows import Rows

PLAIN = Rows(batch=2, context=128, seen=128, width=4, product=4, attended=4, stored=4)
RATES = rates_of(processor())


def _counts(
    shape: ModelShape, method: Method, rows: Rows = PLAIN, layer: int = 1, tiles: int = 1
) -> Counts:
    works = Works(shape, method)
    return works.block(works.kinds[layer], rows, tiles)


def test_a_token_is_multiplied_with_each_weight_of_a_block_twice_over() -> None:
    shape = shape_of("llama-3.2-1b")
    counts = _counts(shape, build("lora", {"rank": 8}))
    weights, rank = shape.blocks[1].linear_parameters, 8
    added = rank * sum(linear.inputs + linear.outputs for linear in shape.blocks[1].linears)

    assert counts.forward.products == 2 * PLAIN.tokens * (weights + added)
    assert counts.back.products == 2 * PLAIN.tokens * (weights + 2 * added)
    assert counts.forward.weights == counts.back.weights == weights
    assert counts.forward.matrices == len(shape.blocks[1].linears)
    assert counts.state.launches == 0


def test_nothing_goes_back_further_than_what_is_trained() -> None:
    shape = shape_of("llama-3.2-1b")
    works = Works(shape, build("lora", {"rank": 8, "layers": 2}))
    back = [works.block(kind, PLAIN).back.launches for kind in works.kinds]

    assert not any(back[:-2])
    assert 0 < back[-2] < back[-1], "the first adapted block's input wants no gradient"


def test_norms_of_rows_are_computed_once_a_step() -> None:
    shape = shape_of("smollm2-135m")
    dora, lora = (TimeModel(shape, build(name, {"rank": 8}), RATES) for name in ("dora", "lora"))
    plan = make_plan(processor(), "smollm2-135m", shape, fixed={"method": "dora"}, training={})
    once = replace(plan.choice, accumulation=1)

    assert dora.state(once) > lora.state(once) == 0
    longer = dora.seconds(replace(once, accumulation=4)) - dora.seconds(once)
    assert longer == pytest.approx(3 * dora.micro_batch(once))
    again = replace(once, checkpointing=Checkpointing(layers=shape.layers))
    assert dora.state(again) == dora.state(once)
    works = Works(shape, build("dora", {"rank": 8}))
    state = works.block(works.kinds[0], PLAIN).state
    weights = shape.blocks[0].linear_parameters
    assert (state.weights, state.matrices) == (weights, len(shape.blocks[0].linears))
    assert state.wide > 2 * 8 * weights


def test_attention_sees_no_more_than_windows_and_documents_let_it() -> None:
    shape = shape_of("llama-3.2-1b")
    long = replace(PLAIN, context=4096, seen=4096)
    whole = _counts(shape, build("lora", {"rank": 8}), long).forward
    shared = _counts(shape, build("lora", {"rank": 8}), replace(long, documents=8.0)).forward
    tokens, queries = long.tokens, shape.blocks[1].queries

    assert whole.attention == 2 * tokens * 4096 * queries
    assert shared.attention == pytest.approx(whole.attention / 8)
    assert shared.products == whole.products
    assert shared.launches > whole.launches
    narrow = shape_of("gemma-2-2b")
    layer = next(n for n, rule in enumerate(narrow.attention) if rule.window is not None)
    ends = [_scores(narrow, layer, context) for context in (8192, 16384)]
    assert ends[1] == pytest.approx(2 * ends[0], rel=0.35), "a window's work grows with the rows"


def _scores(shape: ModelShape, layer: int, context: int) -> float:
    rows = replace(PLAIN, batch=1, context=context, seen=context)
    counts = _counts(shape, build("lora", {"rank": 8}), rows, layer)
    frozen = _counts(shape, build("lora", {"rank": 8}), replace(rows, context=1, seen=1), layer)
    return counts.forward.products - context * frozen.forward.products


def test_tiles_unpack_every_matrix_again_and_attend_to_as_much() -> None:
    shape, lora = shape_of("llama-3.2-1b"), build("lora", {"rank": 8})
    rows = replace(PLAIN, batch=1, context=8192, seen=8192)
    whole, tiled = (_counts(shape, lora, rows, tiles=tiles) for tiles in (1, 8))

    assert tiled.forward.weights == 8 * whole.forward.weights
    assert tiled.forward.products == pytest.approx(whole.forward.products)
    assert tiled.forward.attention == pytest.approx(whole.forward.attention)
    assert whole.keys.products == 0
    keys = [x for x in shape.blocks[1].linears if x.role in {"k", "v"}]
    assert tiled.keys.matrices == 8 * len(keys)


def test_where_operations_are_fused_they_are_fewer_and_move_less() -> None:
    shape, lora = shape_of("llama-3.2-1b"), build("lora", {"rank": 8})
    apart, together = (_counts(shape, lora, replace(PLAIN, fused=each)) for each in (False, True))

    assert together.forward.launches < apart.forward.launches
    assert together.back.moved < apart.back.moved
    assert together.forward.products == apart.forward.products
