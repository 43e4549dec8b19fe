"""Folders that mlx-lm quantized have the numbers that it computes with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from models import make_model

from edgetune.exporters.mlx import readable_config
from edgetune.model import LocalModel
from edgetune.tensors.packed import PackedTensor

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": WIDE,
    "phi3": WIDE,
    "gemma3_text": WIDE,
    "lfm2": {
        "hidden_size": 64,
        "head_dim": 16,
        "block_ffn_dim_multiplier": 1.0,
        "intermediate_size": 96,
    },
    "qwen3_moe": WIDE | {"moe_intermediate_size": 32},
    "mixtral": WIDE,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", [(4, 32, "affine"), (4, 32, "mxfp4")])
def test_mlx_lm_wrote_it(family: str, how: tuple[int, int, str], tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_model(source, family, dtype=torch.bfloat16, **FAMILIES[family])
    original, file = LocalModel.open(source), source / "config.json"
    file.write_text(json.dumps(readable_config(json.loads(file.read_text()), original.shape)))
    bits, group, mode = how
    model, config = quantize_model(*load_model(source), group, bits, mode=mode)
    target.mkdir()
    save_model(target, model)
    save_config(config, target / "config.json")
    found = LocalModel.open(target)

    assert found.tensors.keys() == original.tensors.keys()
    for name, tensor in found.tensors.items():
        expected = original.read(name)
        if isinstance(tensor, PackedTensor):
            router = family == "qwen3_moe" and name.endswith(".gate.weight")
            expected = _rounded(
                expected, *((8, 64, "affine") if router else how)
            )  # mlx-lm's choice
        np.testing.assert_array_equal(found.read(name), expected, err_msg=name)
    assert any(isinstance(x, PackedTensor) for x in found.tensors.values())


def _rounded(values: np.ndarray[Any, Any], bits: int, group: int, mode: str) -> Any:
    """Return numbers as mlx has them once it has quantized them."""
    bits16 = mx.array(np.ascontiguousarray(values).view(np.uint16)).view(mx.bfloat16)
    parts = mx.quantize(bits16, group, bits, mode)
    biases = parts[2] if parts[2:] else None
    dense = mx.dequantize(parts[0], parts[1], biases, group, bits, mode)
    return np.asarray(dense.view(mx.uint16)).view(values.dtype)
