"""A model whose blocks differ, and one of equal blocks that computes the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models import make_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgetune.model import LocalModel
from edgetune.model.weights import stored_tensors
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


def make_mixed(folder: Path) -> tuple[LocalModel, LocalModel]:
    """Return a Llama whose second block is narrower, and one of equal blocks.

    They compute the same: the wide block has its two key heads and its two value heads alike,
    and nothing reads the second half of its MLP.
    """
    wide = make_model(folder / "wide", "llama", num_hidden_layers=2)
    tensors = load_file(wide / "model.safetensors")
    prefix, small = "model.layers.1.", dict(tensors)
    for name in ("self_attn.k_proj", "self_attn.v_proj"):
        half = _first_half(tensors[f"{prefix}{name}.weight"])
        small[f"{prefix}{name}.weight"] = half
        tensors[f"{prefix}{name}.weight"] = half.repeat(2, 1)
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        small[f"{prefix}{name}.weight"] = _first_half(tensors[f"{prefix}{name}.weight"])
    down = tensors[f"{prefix}mlp.down_proj.weight"]
    small[f"{prefix}mlp.down_proj.weight"] = _first_half(down.T).T.contiguous()
    down[:, down.shape[1] // 2 :] = 0
    save_file(tensors, wide / "model.safetensors")
    (folder / "narrow").mkdir()
    save_file(small, folder / "narrow" / "model.safetensors")
    equal = LocalModel.open(wide)
    differing = replace(
        equal, shape=mixed(equal.shape), tensors=stored_tensors(folder / "narrow"), ref="mixed"
    )
    return differing, equal


def _first_half(x: Tensor) -> Tensor:
    return x[: len(x) // 2].clone()
