"""A GGUF file is the model that it was converted from: shape, every tensor, every logit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import ARCHITECTURES, in_numbers
from gguf_pairs import EXPORTED, converted_pair, exported_pair
from opened import open_decoder

from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LocalModel, LocalModel]:
    """A random model as transformers wrote it, and as a GGUF file."""
    return converted_pair(request.param, tmp_path)


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


LONG = frozenset({"qwen3_5_moe_text", "falcon_h1", "nemotron_h"})
"""Those of which llama.cpp's logits say as much (test_gguf_client.py)."""


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize(
    "family",
    [pytest.param(x, marks=[pytest.mark.long] if x in LONG else []) for x in EXPORTED],
)
def test_an_exported_model_is_the_one_it_was_made_from(
    family: str, kind: str, tmp_path: Path
) -> None:
    base, file = exported_pair(family, tmp_path, kind)
    base = base if kind == "f32" else in_numbers(file, tmp_path / "numbers")

    assert (file.shape.formats is None) == (kind == "f32")
    assert file.tensors.keys() == base.tensors.keys()
    row = [number % 1024 for number in range(1, 40)]
    ours, theirs = (open_decoder(model).logits(row, BASE) for model in (file, base))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
