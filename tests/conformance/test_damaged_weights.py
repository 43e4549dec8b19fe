"""Weights that are no numbers are named when a model is opened, wherever they are and live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from models import make_model

from conformance.sessions import Bench
from edgetune.errors import ModelError
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

PARTS = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.layers.1.input_layernorm.weight",
    "projection": "model.layers.1.mlp.down_proj.weight",
    "head": "lm_head.weight",
}
KINDS = {
    torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16,
}  # fmt: skip


def damaged(
    folder: Path, part: str, value: float, dtype: torch.dtype = torch.float32
) -> LocalModel:
    """Write a model with one value of one tensor replaced, the last one."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    model = LocalModel.open(
        make_model(folder, "llama", dtype=dtype, tie_word_embeddings=False, **sizes)
    )
    stored, number = model.tensors[PARTS[part]], np.array(value, KINDS[dtype]).tobytes()
    with stored.file.open("r+b") as file:
        file.seek(stored.end - len(number))
        file.write(number)
    return LocalModel.open(folder)


def refused(bench: Bench, model: LocalModel, part: str, **choice: Any) -> None:
    with pytest.raises(ModelError) as caught:
        bench.open(Lora(rank=2), model, **choice)
    assert caught.value.exit_code == 5
    said = f"The tensor {PARTS[part]} in {model.tensors[PARTS[part]].file} has values that are NaN"
    assert said in str(caught.value)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_a_value_that_is_no_number_is_named(
    bench: Bench, part: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    value = np.nan if part in {"norm", "head"} else -np.inf
    refused(bench, damaged(tmp_path, part, value, dtype), part)


@pytest.mark.parametrize("quantization", ["8-bit", "4-bit"])
def test_so_is_one_that_quantizing_would_hide(
    bench: Bench, quantization: str, tmp_path: Path
) -> None:
    model = damaged(tmp_path, "projection", np.nan)
    refused(bench, model, "projection", quantization=bench.ways.formats[quantization])


@pytest.mark.parametrize("part", PARTS)
def test_so_is_one_that_stays_on_disk(bench: Bench, part: str, tmp_path: Path) -> None:
    for place in ("streamed", "offloaded"):
        model = damaged(tmp_path / place, part, np.nan)
        with pytest.raises(ModelError, match="has values that are NaN"):
            use(bench, model, place)


def use(bench: Bench, model: LocalModel, place: str) -> None:
    """Open a model and compute something: a streamed block is looked at when it comes first."""
    bench.open(Lora(rank=2), model, **bench.ways.places[place]).logits([3, 4, 5])


def test_the_largest_numbers_are_numbers(bench: Bench, tmp_path: Path) -> None:
    model = damaged(tmp_path, "norm", float(np.finfo(np.float32).max))
    bench.open(Lora(rank=2), model)
