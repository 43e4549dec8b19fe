"""What one block's passes hold on MLX: measured on its engine, and by the text over a graph.

MLX is measured at a memory limit of nothing, so that it waits for all that it counts as queued:
how far it prepares ahead then depends on how fast the machine is, within the last ten tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from edgetune.backend import load_backend
from edgetune.data.batch import full_batch
from edgetune.memory.batch_shape import BatchShape, Platform, batch_shape_of
from edgetune.memory.block_pass import BlockPass
from edgetune.memory.lazy.method import LazyMethod
from edgetune.memory.lazy.passes import LazyPasses
from edgetune.methods.planned import BlockKind, kinds
from edgetune.model import LocalModel
from edgetune.planning.plan import Plan
from edgetune.shape import BlockShape
from edgetune_mlx.gradients import added

TRIES = 3


@dataclass(frozen=True)
class Held:
    """Bytes of a block: the peaks of three passes, and what is kept for the way back."""

    plain: int
    forward: int
    kept: int
    again: int


def planned(model: LocalModel, plan: Plan, *, ahead: int) -> list[tuple[BlockKind, BlockPass]]:
    """Return the passes of each kind of block that lends and reads no keys.

    ``ahead`` as in :class:`LazyPasses`.
    """
    choice, shape = plan.choice, model.shape
    method, streamed = choice.method, choice.placement == "disk"
    found = {kind: kind for kind in kinds(method, shape, method.tensors(shape))}
    passes = LazyPasses(
        LazyMethod(method, shape, {}), shape, rows_of(model, plan), choice.quantization,
        streamed=streamed, ahead=ahead,
    )  # fmt: skip
    return [(kind, passes.of(kind)) for kind in found if _alone(shape.blocks[kind.layer])]


def _alone(block: BlockShape) -> bool:
    rule = block.attention
    return rule is None or (rule.source is None and not rule.lends)


def rows_of(model: LocalModel, plan: Plan) -> BatchShape:
    """Return what the passes are computed on."""
    return batch_shape_of(model.shape, plan.choice, Platform(kind="mlx", multiplies_16bit=False))


def measured(model: LocalModel, plan: Plan, layers: Sequence[int]) -> dict[int, Held]:
    """Return what blocks hold on the engine, the most of a few tries."""
    session: Any = load_backend("mlx").open(plan.spec, model)
    batch = full_batch(plan.choice.micro_batch, plan.choice.context, model.shape.vocabulary)
    batch, tiled = session.engine._placed(batch, session.method)
    method = session.method.drawing("0:0", 0)
    draw, dtype = np.random.default_rng(0), session.engine.decoder.dtype
    values = draw.standard_normal((*batch.tokens.shape, model.shape.stream_size), np.float32)
    x, grad = (mx.array(values).astype(dtype) for _ in range(2))
    if model.shape.per_layer is not None:
        own = draw.standard_normal((*batch.tokens.shape, model.shape.per_layer.size), np.float32)
        tiled.layout.per_layer = [mx.array(own).astype(dtype)] * model.shape.layers
        mx.eval(tiled.layout.per_layer)
    mx.eval(x, grad)
    limits = mx.set_memory_limit(1), mx.set_cache_limit(0)
    try:
        each = [
            {layer: _held(session.engine, layer, x, grad, tiled, method) for layer in layers}
            for _ in range(TRIES)
        ]
    finally:
        mx.set_memory_limit(limits[0])
        mx.set_cache_limit(limits[1])
        session.close()
    return {layer: _most([one[layer] for one in each]) for layer in layers}


def _most(held: Sequence[Held]) -> Held:
    return Held(
        plain=max(one.plain for one in held),
        forward=max(one.forward for one in held),
        kept=max(one.kept for one in held),
        again=max(one.again for one in held),
    )


def _held(engine: Any, layer: int, x: Any, grad: Any, tiled: Any, method: Any) -> Held:
    layout, in_tiles = tiled.layout, None
    if tiled.splits(layer):
        in_tiles = _held_in_tiles(engine, layer, x, grad, tiled, method)
    base = _begin()
    out = engine.decoder.block(layer, x, layout, method)
    mx.eval(out)
    plain = mx.get_peak_memory() - base
    del out
    base = _begin()
    (x_grad,), found = engine.blocks.backward(layer, x, [grad], layout, method)
    goes_on = method.trains_input or layer > method.first_layer
    x_grad = x_grad if goes_on else grad  # as the engine does
    engine._evaluate(found, x_grad)
    again = mx.get_peak_memory() - base
    del x_grad, found
    base, own = _begin(), method.of_block(layer)

    def product(x: Any, tensors: list[Any]) -> Any:
        over = method.over(dict(zip(own, tensors, strict=True)))
        out = engine.decoder.block(layer, x, layout, over)
        return (out * grad).sum(), out

    with engine.decoder.graph:
        (value, out), grads = mx.value_and_grad(product, argnums=(0, 1))(x, list(own.values()))
    grads = grads if goes_on else grads[1:]
    del value
    mx.eval(out)
    mx.synchronize()
    forward, kept = mx.get_peak_memory() - base, mx.get_active_memory() - base
    del out, grads
    if in_tiles is not None:
        plain, again = in_tiles
    return Held(plain=plain, forward=forward, kept=kept, again=again)


def _held_in_tiles(
    engine: Any, layer: int, x: Any, grad: Any, tiled: Any, method: Any
) -> tuple[int, int]:
    """Return the peaks of a block's pass in tiles, and of computing it again and going back."""
    own, grads = ([mx.contiguous(x[:, span] + 0) for span in tiled.spans] for x in (x, grad))
    mx.eval(own, grads)
    base = _begin()
    out = tiled.forward(layer, own, method)
    plain = mx.get_peak_memory() - base
    del out
    shared = method.spec.everywhere if layer < engine.decoder.shape.layers - 1 else lambda _: False
    found = {k: mx.zeros(x.shape) for k, x in method.of_block(layer).items() if shared(k)}
    mx.eval(found)  # later blocks gave them theirs
    goes_on = method.trains_input or layer > method.first_layer
    base = _begin()
    tiled.backward(layer, own, grads, method, partial(added, found), goes_on=goes_on)
    return plain, mx.get_peak_memory() - base


def _begin() -> int:
    """Return the bytes that are there before something is measured."""
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    return int(mx.get_active_memory())
