"""A model whose blocks differ, and one of equal blocks that computes the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mixed_shapes import mixed
from models import make_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgetune.model import LocalModel
from edgetune.model.weights import stored_tensors


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
