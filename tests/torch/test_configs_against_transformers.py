"""Configs that say a thing twice, in part or by an old name mean what they mean to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, SMALL, _fill
from opened import open_decoder
from transformers import AutoConfig, AutoModelForCausalLM

from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE

FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = [FULL, SLIDING, SLIDING]
NEO_KINDS = ["local", "local", "global", "local"]

ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "types of layers": ("mistral", {"layer_types": MIXED}),
    "types of layers that are null": ("mistral", {"layer_types": None}),
    "a theta alone": ("apertus", {"rope_theta": 333.0}),
    "a theta and an empty scaling": ("apertus", {"rope_theta": 333.0, "rope_scaling": {}}),
    "a theta and an empty table": ("apertus", {"rope_theta": 333.0, "rope_parameters": {}}),
    "a share by another name": ("gpt_neox", {"partial_rotary_factor": 1.0, "rope_parameters": None}),
    "types against a switch": (
        "smollm3", {"use_sliding_window": False, "sliding_window": 5, "layer_types": MIXED}),
    "a window that is off": (
        "smollm3",
        {"use_sliding_window": False, "sliding_window": 5, "no_rope_layer_interval": 2}),
    "layers against types": ("gpt_neo", {"attention_layers": NEO_KINDS}),
    "layers without types": (
        "gpt_neo", {"attention_layers": NEO_KINDS, "attention_types": None}),
}  # fmt: skip
"""Of a family, what its usual small config is changed by; what is None is left out."""
_NULLS = ("layer_types",)
"""Except for these, which are written as null."""


@pytest.mark.parametrize(("family", "changes"), ODD.values(), ids=ODD)
def test_odd_configs_are_read_as_in_transformers(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    row = torch.randint(3, 90, (23,), generator=torch.Generator().manual_seed(5))
    expected = _written(tmp_path, family, changes)(row[None]).logits[0].detach()

    found = open_decoder(LocalModel.open(tmp_path)).logits(row.tolist(), BASE)

    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def _written(folder: Path, family: str, changes: dict[str, Any]) -> Any:
    """Write a random model under a config as it is given, and return it."""
    config = {"model_type": family} | FAMILIES.get(family, SMALL) | changes
    text = json.dumps({name: x for name, x in config.items() if name in _NULLS or x is not None})
    (folder / "config.json").write_text(text)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder), attn_implementation="eager"
    ).eval()
    _fill(model, family)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(text)
    return model

