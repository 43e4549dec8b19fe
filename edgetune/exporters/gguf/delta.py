"""Gated DeltaNet as llama.cpp has it: its heads of values in another order, its numbers in others.

The model keeps the heads that share keys next to each other; llama.cpp wants the first of each,
then the second of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import UsageError
from edgetune.exporters.gguf.rows import Decays, OneByTap, Reordered, Rows
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.shape import ModelShape
from edgetune.tensors.gguf.writer import Value

Order = NDArray[np.int64]


def head_order(mixer: GatedDelta, width: int) -> Order:
    """Return which of the model's rows each row in the file is, ``width`` of them a head.

    >>> head_order(GatedDelta(key_heads=2, value_heads=4, key_dim=1, value_dim=1, taps=4, module=""), 1).tolist()
    [0, 2, 1, 3]
    """
    by_key = np.arange(mixer.value_heads * width).reshape(mixer.key_heads, -1, width)
    order: Order = by_key.swapaxes(0, 1).reshape(-1)
    return order


def channel_order(mixer: GatedDelta) -> Order:
    """Return the same of queries, keys and values side by side, of which the last move."""
    first = 2 * mixer.keys
    moved = first + head_order(mixer, mixer.value_dim)
    order: Order = np.concatenate([np.arange(first), moved])
    return order


def row_order(mixer: GatedDelta, role: str) -> Order | None:
    """Return the order of a projection's outputs, None if they stay."""
    match role:
        case "delta_qkv":
            return channel_order(mixer)
        case "delta_z":
            return head_order(mixer, mixer.value_dim)
        case "delta_a" | "delta_b":
            return head_order(mixer, 1)
        case _:
            return None


def column_order(mixer: GatedDelta, role: str) -> Order | None:
    """Return the order of a projection's inputs, None if they stay."""
    return head_order(mixer, mixer.value_dim) if role == "delta_out" else None


def own_tensor(mixer: GatedDelta, role: str, rows: Rows) -> Rows:
    """Return a tensor of the mixer as the file has it."""
    if role == "conv":
        return Reordered(OneByTap(rows), channel_order(mixer))
    return Reordered(Decays(rows) if role == "a_log" else rows, head_order(mixer, 1))


def metadata(mixer: GatedDelta, shape: ModelShape) -> Iterator[tuple[str, Value]]:
    """Yield the mixer's sizes, and in which layers there is attention instead."""
    yield "ssm.conv_kernel", Value("uint32", mixer.taps)
    yield "ssm.state_size", Value("uint32", mixer.key_dim)
    yield "ssm.group_count", Value("uint32", mixer.key_heads)
    yield "ssm.time_step_rank", Value("uint32", mixer.value_heads)
    yield "ssm.inner_size", Value("uint32", mixer.values)
    yield "full_attention_interval", Value("uint32", attention_interval(shape))


def attention_interval(shape: ModelShape) -> int:
    """Return every how manieth block has attention, which is the first one's number.

    Raises:
        UsageError: if others do not follow: clients know this number alone.
    """
    attends = [block.attention is not None for block in shape.blocks]
    every = attends.index(True) + 1
    if attends != [(layer + 1) % every == 0 for layer in range(shape.layers)]:
        raise UsageError(
            "Clients know Qwen3.5 with attention in every so manieth layer, and this model has it "
            "in others. Export the merged model (--to hf) or the adapter itself (--to peft)."
        )
    return every
