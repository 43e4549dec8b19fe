"""Mamba-2 as llama.cpp has it: Granite 4 H, Falcon-H1, Nemotron-H."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Final

import numpy as np

from edgetune.exporters.gguf.rows import Decays, InRows, OneByTap, Rows, RowsRescaled
from edgetune.network.mixers.state_space import StateSpace
from edgetune.shape import BlockShape, ModelShape
from edgetune.tensors.gguf.writer import Value

_EXPANSION: Final = 2
"""Granite 4's layers have so many values for each number of the stream, as llama.cpp asserts."""
HARMLESS_STEP: Final = 1e-3
"""A bound from below that Nemotron-H's steps have and llama.cpp leaves out: with less, a token is
worth next to nothing."""


def mixers(shape: ModelShape) -> tuple[StateSpace, ...]:
    """Return the kinds of Mamba-2 that a model has."""
    found = (kind.recurrent for kind in shape.kinds)
    return tuple(mixer for mixer in found if isinstance(mixer, StateSpace))


def differences(shape: ModelShape) -> Iterator[str]:
    """Yield what llama.cpp would compute otherwise."""
    if not mixers(shape):
        yield "none of its layers is Mamba-2, whose sizes llama.cpp wants"
    for mixer in mixers(shape):
        if not mixer.bias:
            yield "its convolutions have no biases"
        if mixer.least_step > HARMLESS_STEP or mixer.most_step < inf:
            yield "the steps of its Mamba layers are bounded"
    normed = [block for block in shape.kinds if "scan" in block.norm_by_role]
    if any(x.normed_first for block in normed if isinstance(x := block.recurrent, StateSpace)):
        yield "what its Mamba layers read is normalised before it is gated"
    if shape.family == "granitemoehybrid" and any(
        mixer.values != _EXPANSION * shape.hidden_size for mixer in mixers(shape)
    ):
        yield "the values of its Mamba layers are not twice as wide as the stream"


def own_tensor(role: str, rows: Rows) -> Rows:
    """Return a tensor of the mixer as the file has it: numbers of heads are columns."""
    match role:
        case "conv":
            return OneByTap(rows)
        case "a_log":
            return InRows(Decays(rows), 1)
        case "skip":
            return InRows(rows, 1)
    return rows


def rescaled(rows: Rows, mixer: StateSpace) -> Rows:
    """Return what makes gate, values, keys, queries and steps, times the model's multipliers."""
    if not mixer.multipliers:
        return rows
    gate, *_, steps = mixer.multipliers
    counts = [(gate, mixer.values), *mixer.channel_multipliers, (steps, mixer.heads)]
    scales = np.concatenate([np.full(count, scale, np.float32) for scale, count in counts])
    return RowsRescaled(rows, scales)


def metadata(shape: ModelShape) -> Iterator[tuple[str, Value]]:
    """Yield the mixer's sizes, and which layers have attention, Mamba-2 or an MLP."""
    mixer = mixers(shape)[0]
    yield "ssm.conv_kernel", Value("uint32", mixer.taps)
    yield "ssm.state_size", Value("uint32", mixer.key_dim)
    yield "ssm.group_count", Value("uint32", mixer.groups)
    yield "ssm.time_step_rank", Value("uint32", mixer.heads)
    yield "ssm.inner_size", Value("uint32", mixer.values)
    yield "attention.head_count_kv", Value("int32", [block.kv_heads for block in shape.blocks])
    if shape.family == "nemotron_h":
        yield "feed_forward_length", Value("int32", [_width(block) for block in shape.blocks])
        yield "attention.layer_norm_epsilon", Value("float32", shape.norm.eps)  # asked for as well
        yield from _experts(shape)
    if shape.family == "granitemoehybrid":
        yield "rope.scaling.finetuned", Value("bool", bool(shape.rotaries))


def _width(block: BlockShape) -> int:
    if block.experts is not None:
        return block.experts.size
    return block.ffn_size if block.feeds else 0


def _experts(shape: ModelShape) -> Iterator[tuple[str, Value]]:
    """Yield how many experts a layer has, if any does, and how they are chosen."""
    block = next((kind for kind in shape.kinds if kind.experts is not None), None)
    if block is None or block.experts is None:
        return
    rule = block.experts
    yield "expert_count", Value("uint32", rule.number)
    yield "expert_used_count", Value("uint32", rule.chosen)
    yield "expert_feed_forward_length", Value("uint32", rule.size)
    yield "expert_shared_feed_forward_length", Value("uint32", block.ffn_size)
    yield "expert_shared_count", Value("uint32", 1)
    yield "expert_weights_norm", Value("bool", rule.normalised)
    yield "expert_weights_scale", Value("float32", rule.factor)
    yield "expert_group_count", Value("uint32", rule.groups)
    yield "expert_group_used_count", Value("uint32", rule.chosen_groups)
