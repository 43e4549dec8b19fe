"""The text of multi-head latent attention (DeepSeek-V2): how queries, keys and values are made.

B rows, S positions, H heads, h channels of a query or a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune.network.ops import A
from edgetune.shape import Latent, Rotary

if TYPE_CHECKING:
    from edgetune.network.block import Block


def queries(block: Block[A], x: A) -> A:
    """Return q (B, H, S, h) before it is rotated, made in one step or two."""
    ops, role = block.ops, "q"
    if "q_a" in block.own.linear_by_role:
        x, role = block.norm("q_a", block.project("q_a", x)), "q_b"
    return ops.heads_first(ops.to_heads(block.project(role, x), block.own.head_dim))


def keys_values(block: Block[A], x: A, latent: Latent, rotary: Rotary | None) -> tuple[A, A]:
    """Return k and v (B, H, S, h): keys rotated if they are to be, values with zeros behind."""
    ops, size = block.ops, block.own.head_dim
    numbers, shared = ops.split(block.project("kv_a", x), (latent.rank, latent.rotated))
    shared = ops.heads_first(ops.to_heads(shared, latent.rotated))  # (B, 1, S, rotated)
    if rotary is not None:
        shared = ops.rotate(shared, rotary)
    made = block.project("kv_b", block.norm("kv_a", numbers))
    del numbers
    own = size - latent.rotated
    k, v = ops.split_by_head(made, block.own.heads, (own, latent.value_dim))
    del made
    k = ops.with_shared(ops.heads_first(ops.to_heads(k, own)), shared)
    return k, ops.heads_first(ops.channels(ops.to_heads(v, latent.value_dim), size))


def output(block: Block[A], x: A, latent: Latent) -> A:
    """Return (B, S, H v) of what was attended to (B, H, S, h), without the zeros behind values."""
    ops = block.ops
    x = ops.channels(ops.to_heads(ops.from_heads(x), block.own.head_dim), latent.value_dim)
    return ops.from_heads(ops.heads_first(x))
