"""Shapes whose blocks differ."""

from __future__ import annotations

from dataclasses import replace

from edgetune.shape import BlockShape, Linear, ModelShape, Norm


def narrower(block: BlockShape) -> BlockShape:
    """Return a block with half as wide an MLP and, where they are not one, half the key heads."""
    shares = block.kv_heads % 2 == 0 and not block.interleaved_qkv
    heads = block.kv_heads // 2 if shares else block.kv_heads
    narrow = replace(block, kv_heads=heads, ffn_size=block.ffn_size // 2)
    return replace(
        narrow,
        linears=tuple(_linear(linear, narrow) for linear in block.linears),
        norms=tuple(_norm(norm, block, narrow) for norm in block.norms),
    )


def _linear(linear: Linear, block: BlockShape) -> Linear:
    outputs = {
        "k": block.keys, "v": block.keys, "qkv": block.queries + 2 * block.keys,
        "gate": block.ffn_size, "up": block.ffn_size, "gate_up": 2 * block.ffn_size,
    }.get(linear.role, linear.outputs)  # fmt: skip
    inputs = block.ffn_size if linear.role == "down" else linear.inputs
    return replace(linear, inputs=inputs, outputs=outputs)


def _norm(norm: Norm, before: BlockShape, block: BlockShape) -> Norm:
    of_all = norm.role == "k" and norm.size == before.keys
    return replace(norm, size=block.keys) if of_all else norm


def mixed(shape: ModelShape) -> ModelShape:
    """Return a shape with every second block narrower."""
    blocks = tuple(
        narrower(block) if layer % 2 else block for layer, block in enumerate(shape.blocks)
    )
    return replace(shape, blocks=blocks)
