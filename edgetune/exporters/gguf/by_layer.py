"""Gemma 4 as llama.cpp has it: sizes by layer, two kinds of attention, keys that layers share.

Of the layers that read the keys and values of others, llama.cpp lets those with a window read the
last but one layer that makes any, and those without one the last.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgetune.shape import ModelShape, Rotary
from edgetune.tensors.gguf.writer import Value

STILL = 1e30
"""What the frequencies of channels that do not turn are divided by."""


def differences(shape: ModelShape) -> Iterator[str]:
    """Yield what llama.cpp would compute otherwise."""
    for windowed, what in ((True, "with"), (False, "without")):
        own = [x for x in shape.blocks if (rule := x.attention) and bool(rule.window) is windowed]
        kinds = {(x.heads, x.head_dim, x.attention and x.attention.rotary) for x in own}
        if len(kinds) > 1:
            yield f"its layers {what} a window differ in heads or rotation"
    if any(kind.attention is None or kind.attention.scale != 1.0 for kind in shape.kinds):
        yield "its scores are scaled"
    rotations = {"none", "proportional"}
    if any(rule.scaling not in rotations or rule.factor != 1.0 for rule in shape.rotaries):
        yield "its rotation is scaled"
    if any(rule.rotary and _turns_apart(rule.rotary, rule.window) for rule in shape.attention):
        yield "heads turn in part in layers with a window"
    yield from sharing(shape)


def sharing(shape: ModelShape) -> Iterator[str]:
    """Yield the first layer that reads the keys of another one than llama.cpp lets it read."""
    first = first_reading(shape)
    for layer in range(first, shape.layers):
        rule = shape.attention[layer]
        if rule.source != first - (1 if rule.window is None else 2):
            yield f"layer {layer} reads the keys of layer {rule.source}"
            break


def first_reading(shape: ModelShape) -> int:
    """Return the first layer that reads the keys and values of another; past the last if none."""
    own = [layer for layer in range(shape.layers) if shape.source(layer) is not None]
    return own[0] if own else shape.layers


def metadata(shape: ModelShape) -> Iterator[tuple[str, Value]]:
    """Yield the sizes of layers, and which of them see a window."""
    windows = [rule.window for rule in shape.attention]
    full, windowed = _one(shape, windowed=False), _one(shape, windowed=True)
    yield "feed_forward_length", Value("int32", [block.ffn_size for block in shape.blocks])
    yield "attention.head_count", Value("uint32", shape.blocks[0].heads)
    yield "attention.head_count_kv", Value("int32", [block.kv_heads for block in shape.blocks])
    for name, layer in (("", full), ("_swa", windowed)):
        size = Value("uint32", shape.blocks[layer].head_dim)
        yield f"attention.key_length{name}", size
        yield f"attention.value_length{name}", size
        yield f"rope.dimension_count{name}", size
        rotary = shape.attention[layer].rotary
        yield f"rope.freq_base{name}", Value("float32", 1e4 if rotary is None else rotary.theta)
    yield "attention.sliding_window", Value("uint32", max((x for x in windows if x), default=512))
    pattern = [window is not None for window in windows]
    yield "attention.sliding_window_pattern", Value("bool", pattern)
    shared = shape.layers - first_reading(shape)
    yield "attention.shared_kv_layers", Value("uint32", shared)
    own = 0 if shape.per_layer is None else shape.per_layer.size
    yield "embedding_length_per_layer_input", Value("uint32", own)


def rotation_factors(rule: Rotary) -> NDArray[np.float32]:
    """Return what each frequency of a head that turns in part is divided by."""
    pairs = np.arange(rule.dimensions // 2)
    turning = rule.turning if rule.scaling == "proportional" else rule.dimensions
    return np.where(2 * pairs < turning, 1.0, STILL).astype(np.float32)


def _turns_apart(rotary: Rotary, window: int | None) -> bool:
    return rotary.scaling == "proportional" and window is not None


def _one(shape: ModelShape, *, windowed: bool) -> int:
    """Return a layer with a window or without; any if there is none of the kind."""
    found = (i for i, rule in enumerate(shape.attention) if (rule.window is not None) is windowed)
    return next(found, shape.layers - 1)
