"""A GGUF file is the model that it was converted from: shape, every tensor, every logit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import ARCHITECTURES, convert
from models import FAMILIES, SMALL, make_model
from opened import open_decoder

from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE

OWN = {
    "granite": SMALL | {"attention_multiplier": 0.2, "embedding_multiplier": 3.0,
                        "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "smollm3": SMALL,
    "stablelm": SMALL | {"head_dim": None, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    "starcoder2": SMALL | {"sliding_window": None},
}  # fmt: skip
"""Families beyond those of ``models``."""


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LocalModel, LocalModel]:
    """A random model as transformers wrote it, and as a GGUF file."""
    family = request.param
    changes = OWN.get(family, {})
    if family in OWN:
        FAMILIES.setdefault(family, changes)
    without = {"mlp_only_layers": []} if family == "qwen3_moe" else {}
    folder = make_model(tmp_path / "folder", family, **without)
    file = convert(folder, tmp_path / "model.gguf")
    return LocalModel.open(folder), LocalModel.open(file)


@pytest.mark.parametrize("pair", ARCHITECTURES, indirect=True)
def test_a_converted_model_is_the_one_it_was_made_from(
    pair: tuple[LocalModel, LocalModel],
) -> None:
    folder, file = pair

    assert replace(file.shape, dtype=folder.shape.dtype) == folder.shape
    for name in folder.tensors:
        expected, found = folder.read(name), file.read(name)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7, err_msg=name)
        assert found.shape == expected.shape
    row = [number % folder.shape.vocabulary for number in range(1, 40)]
    ours, theirs = (open_decoder(model).logits(row, BASE) for model in (file, folder))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
