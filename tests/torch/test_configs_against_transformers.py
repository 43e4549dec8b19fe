"""Configs that say a thing twice, in part or by an old name mean what they mean to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, SMALL, _fill, make_wrapper
from opened import open_decoder
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from edgetune.errors import ModelError
from edgetune.model import LocalModel
from edgetune.model.families.wrappers import INSIDE
from edgetune.network.adaptation import BASE

FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = [FULL, SLIDING, SLIDING]
NEO_KINDS = ["local", "local", "global", "local"]

GPTS = ("gpt2", "gpt_bigcode", "gptj")
COUNTS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
UNUSUAL = {"n_embd": None, "n_layer": None, "n_head": None}

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
    "the usual names in gpt_neo": (
        "gpt_neo", COUNTS | {"num_hidden_layers": 4, "num_heads": None, "num_layers": None}),
    "the usual names in mpt": (
        "mpt", COUNTS | {"hidden_size": 48, "d_model": None, "n_heads": None, "n_layers": None}),
    **{f"the usual names in {name}": (name, COUNTS | UNUSUAL) for name in GPTS},
    **{f"a scaling by its old name in {name}": (name, {
        "rope_scaling": {"type": "linear", "factor": 4.0}}) for name in ("gemma3n_text", "olmo3")},
    "no jitter": ("phimoe", {"router_jitter_noise": 0.0}),
    "an activation by another name": ("llama", {"hidden_act": "gelu_python"}),
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


@pytest.mark.parametrize("wrapper", ["llava", "mistral3"])
def test_types_of_layers_are_not_read_in_a_mistral_inside(wrapper: str, tmp_path: Path) -> None:
    row = torch.arange(3, 26)
    model = make_wrapper(tmp_path, wrapper, "mistral")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["layer_types"] = MIXED
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    expected = model(input_ids=row[None]).logits[0].detach()

    found = open_decoder(LocalModel.open(tmp_path)).logits(row.tolist(), BASE)

    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("head", [False, True], ids=["no head", "a head"])
@pytest.mark.parametrize("wrapper", INSIDE)
def test_a_wrapper_has_the_head_that_it_has_in_transformers(
    wrapper: str, head: bool, tmp_path: Path
) -> None:
    make_wrapper(tmp_path, wrapper)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    written, tensors = json.loads(config.read_text()), load_file(weights)
    tensors = {name: x for name, x in tensors.items() if not name.endswith("lm_head.weight")}
    if head:
        embedding = next(x for name, x in tensors.items() if name.endswith("embed_tokens.weight"))
        tensors["lm_head.weight"] = torch.randn_like(embedding)
    save_file(tensors, weights, metadata={"format": "pt"})
    for inner in (True, False, None):
        for outer in (True, False, None):
            config.write_text(json.dumps(_tying(written, inner, outer)))
            theirs = AutoConfig.from_pretrained(tmp_path).tie_word_embeddings
            older = inner is True and outer is None  # transformers 4 read the inner one alone
            if head or theirs or older:
                assert LocalModel.open(tmp_path).shape.tied is not head, (inner, outer)
                continue
            with pytest.raises(ModelError, match="set tie_word_embeddings to true"):
                LocalModel.open(tmp_path)


def _tying(config: dict[str, Any], inner: bool | None, outer: bool | None) -> dict[str, Any]:
    """Return a wrapper's config with other flags, left out where they are None."""
    name = "tie_word_embeddings"
    text = {k: x for k, x in config["text_config"].items() if k != name}
    text |= {} if inner is None else {name: inner}
    rest = {k: x for k, x in config.items() if k not in {name, "text_config"}}
    return rest | {"text_config": text} | ({} if outer is None else {name: outer})


@pytest.mark.parametrize("wrapper", ["internvl", "mistral3"])
def test_a_wrapper_is_read_as_transformers_writes_it(wrapper: str, tmp_path: Path) -> None:
    model, row = make_wrapper(tmp_path, wrapper, tie_word_embeddings=True), torch.arange(3, 20)
    expected = model(input_ids=row[None]).logits[0].detach()

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
