"""Gemma 3n as llama.cpp has it: four streams, and sizes that no file changes.

It computes the published models: how many streams there are, which of them a block computes, the rank
beside attention, the numbers that a layer reads of a token, which gates are sparse and which layers
read the keys of others are part of its code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isclose
from typing import Final

import numpy as np

from edgetune.exporters.gguf.by_layer import first_reading, sharing
from edgetune.exporters.gguf.rows import Constant, HeldRows, Rows, Stacked
from edgetune.model.gguf_names import LINEARS, NORMS, STREAM_ENTRIES, STREAM_EXITS
from edgetune.shape import BlockShape, ModelShape
from edgetune.tensors.gguf.writer import Value

_STREAMS: Final = 4
_RANK: Final = 64
_OWN: Final = 256
_OWN_KEYS: Final = 20
"""Layers before these make keys and values."""
_SPARSE: Final = 10
"""Layers whose gates are sparse."""
_BOUND: Final = 1.6448536
"""Deviations above the mean of which 95 % of a normal distribution are below."""
_CAP: Final = 30.0
_ROUGHLY: Final = 1e-3
"""Deviations that a sparse gate's bound may be off without a word."""


def differences(shape: ModelShape) -> Iterator[str]:
    """Yield what llama.cpp would compute otherwise."""
    rule, block = shape.altup, shape.blocks[0]
    if rule is None or (rule.count, rule.active) != (_STREAMS, 0):
        yield f"it has not {_STREAMS} streams of which the first is computed"
    if (rank := block.linear_by_role["laurel_left"].outputs) != _RANK:
        yield f"its rank beside attention (LAuReL) is {rank}, there it is {_RANK}"
    if block.per_layer != _OWN:
        yield f"a layer reads {block.per_layer} numbers of its own, there {_OWN}"
    if len({each.ffn_size for each in shape.blocks}) > 1:
        yield "its MLPs differ in width"
    if shape.logit_softcap != _CAP:
        yield f"its logits are capped at {shape.logit_softcap}, there at {_CAP}"
    wrong = [i for i, each in enumerate(shape.blocks) if not _gate_is_known(i, each.cutoff)]
    if wrong:
        yield (
            f"the gate of layer {wrong[0]} lets another share through: there 5 % pass in the first "
            f"{_SPARSE} layers, all in the others"
        )
    first = first_reading(shape)
    if first != min(_OWN_KEYS, shape.layers):
        yield f"layers from {first} on read the keys of others, there from {_OWN_KEYS} on"
    yield from sharing(shape)


def metadata(shape: ModelShape) -> Iterator[tuple[str, Value]]:
    """Yield what is told of streams and of layers; llama.cpp reads no more of it than of windows."""
    rule, own = shape.altup, shape.per_layer
    assert rule is not None  # as all models of the family have
    assert own is not None
    windows = [attention.window for attention in shape.attention]
    yield "attention.sliding_window", Value("uint32", max((x for x in windows if x), default=512))
    pattern = [window is not None for window in windows]
    yield "attention.sliding_window_pattern", Value("bool", pattern)
    yield "attention.shared_kv_layers", Value("uint32", shape.layers - first_reading(shape))
    yield "altup.active_idx", Value("uint32", rule.active)
    yield "altup.num_inputs", Value("uint32", rule.count)
    yield "embedding_length_per_layer_input", Value("uint32", own.size)
    scales = [float("-inf") if each.cutoff is None else each.cutoff for each in shape.blocks]
    yield "activation_sparsity_scale", Value("float32", scales)


def outer_tensors(shape: ModelShape, source: Callable[[str], Rows]) -> Iterator[tuple[str, Rows]]:
    """Yield the projections by which streams begin and end, those of each in one tensor."""
    if shape.altup is not None:
        for name, modules in (
            (STREAM_ENTRIES, shape.altup.entries),
            (STREAM_EXITS, shape.altup.exits),
        ):
            yield name, Stacked(tuple(source(f"{module}.weight") for module in modules))


def unread_keys(block: BlockShape, target: str) -> Iterator[tuple[str, Rows]]:
    """Yield what makes keys and values in a layer that reads those of another.

    llama.cpp wants the tensors, and computes nothing with them.
    """
    if block.attention is None or block.attention.source is None:
        return
    hidden = block.linear_by_role["o"].outputs
    for role in ("k", "v"):
        yield f"{target}{LINEARS[role]}.weight", Constant((block.keys, hidden))
    yield f"{target}{NORMS['k']}.weight", Constant((block.head_dim,))


def scale_of_one(block: BlockShape, role: str, rows: Rows) -> Rows:
    """Return what scales what reads a token's own numbers: ones in a model that does not scale it."""
    if role == "altup_scale" and block.altup is not None and not block.altup.scaled:
        return HeldRows(np.ones(rows.shape, np.float32))
    return rows


def rough_gates(shape: ModelShape) -> str | None:
    """Return what llama.cpp's deviations, counted over n - 1, change, in words; None if hardly."""
    narrow = min((x.ffn_size for x in shape.blocks if x.cutoff is not None), default=0)
    if shape.altup is None or not narrow:
        return None
    off = _BOUND * ((narrow / max(narrow - 1, 1)) ** 0.5 - 1)
    if off < _ROUGHLY:
        return None
    return (
        f"llama.cpp counts the deviation of {narrow:,} numbers over {narrow - 1:,}: its sparse gates "
        f"begin to let through {off:.1g} deviations higher"
    )


def _gate_is_known(layer: int, cutoff: float | None) -> bool:
    if layer >= _SPARSE:
        return cutoff is None
    return cutoff is not None and isclose(cutoff, _BOUND, rel_tol=1e-6)
