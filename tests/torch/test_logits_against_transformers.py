"""The forward pass of every family equals transformers', lengths beyond the window included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import FAMILIES, make_model
from opened import open_decoder
from transformers import AutoModelForCausalLM

from edgetune.methods import build, initial_value
from edgetune.methods.adapted import Adapted
from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE

LENGTH = 23
"""More than the windows of the small models, so that windows show."""


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = torch.randint(3, 97, (LENGTH,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens[None]).logits[0]

    found = open_decoder(LocalModel.open(folder)).logits(tokens.tolist(), BASE)

    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_nothing(family: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path, family))
    engine = open_decoder(model)
    method = build("lora", {"rank": 3})
    parameters = {
        tensor.name: torch.nn.Parameter(torch.from_numpy(initial_value(tensor, 0)))
        for tensor in method.tensors(model.shape)
    }
    row = list(range(3, 3 + LENGTH))

    adapted = engine.logits(row, Adapted(method, model.shape, parameters))

    assert torch.equal(adapted, engine.logits(row, BASE))
