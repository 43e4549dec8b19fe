"""Every shape equals the model that transformers builds from the same config, on the meta device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_wrapper
from random_configs import random_config
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from unfused import STORED_BUFFERS, stored_parameters, unfused

from edgetune.model import LocalModel
from edgetune.model.families import shape_of, supported
from edgetune.model.families.wrappers import INSIDE
from edgetune.profile import model_names, model_profile
from edgetune.shape import ModelShape

SEEDS = range(6)
OLD = frozenset({"bloom", "falcon", "gpt_bigcode", "gpt_neo", "gptj", "mpt", "opt"})
"""Families whose classes do not say what their attention does; their logits are compared."""


@pytest.mark.parametrize("name", [name for name in model_names() if name != "tiny"])
def test_a_profile_has_the_tensors_of_the_transformers_model(name: str) -> None:
    config = dict(model_profile(name).config)

    _assert_same_tensors(shape_of(config), _meta_model(config))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", supported())
def test_a_random_config_gives_the_transformers_model(family: str, seed: int) -> None:
    config = random_config(family, seed)
    shape, model = shape_of(config), _meta_model(config)

    _assert_same_tensors(shape, model)
    if family not in OLD:
        _assert_same_attention(shape, model)
        _assert_same_norms(shape, model)


@pytest.mark.parametrize("first", [0, 2, 9])
@pytest.mark.parametrize("window", [8, None])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_windows_of_qwen_are_those_of_transformers(
    family: str, window: int | None, first: int
) -> None:
    """A null is no window, and a first layer of 0 means all."""
    config = random_config(family, 0) | {"num_hidden_layers": 4, "use_sliding_window": True}
    config |= {"sliding_window": window, "max_window_layers": first}

    _assert_same_attention(shape_of(config), _meta_model(config))


@pytest.mark.parametrize("shard_size", ["1GB", "4KB"])
@pytest.mark.parametrize("family", [name for name in supported() if name not in INSIDE])
def test_what_transformers_saves_can_be_opened(
    family: str, shard_size: str, tmp_path: Path
) -> None:
    config = random_config(family, 0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**deepcopy(config)))
    model.save_pretrained(tmp_path, max_shard_size=shard_size)

    local = LocalModel.open(tmp_path)

    assert local.shape == shape_of(config | {"dtype": "float32"})
    _assert_same_values(local, stored_parameters(local.shape, model))


@pytest.mark.parametrize("wrapper", INSIDE)
def test_the_language_model_inside_a_saved_wrapper_can_be_opened(
    wrapper: str, tmp_path: Path
) -> None:
    model = make_wrapper(tmp_path, wrapper)
    config = json.loads((tmp_path / "config.json").read_text())

    local = LocalModel.open(tmp_path)

    assert local.shape == shape_of(config)
    prefix = "model.language_model."
    tied = "lm_head.weight" if local.shape.tied else None
    inner = {
        name.replace(prefix, "model.", 1): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith((prefix, "lm_head")) and name != tied
    }
    if local.shape.has_experts:
        inner = dict(unfused(local.shape, inner))
    assert local.tensors.keys() == inner.keys()
    _assert_same_values(local, inner)
    eyes = (".vis", ".embed_vis")
    assert any(part in name for part in eyes for name, _ in model.named_parameters())


def _assert_same_values(local: LocalModel, parameters: Mapping[str, torch.Tensor]) -> None:
    for name in local.tensors:
        expected = parameters.get(name)
        assert expected is not None
        found = torch.from_numpy(local.read(name).copy())
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=0)


def _meta_model(config: Mapping[str, Any]) -> PreTrainedModel:
    fields = deepcopy(dict(config))
    # The language model inside a vision-language model is what a shape describes.
    fields = fields.get("text_config", fields)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))


def _assert_same_tensors(shape: ModelShape, model: PreTrainedModel) -> None:
    stored = stored_parameters(shape, model)
    expected = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    found = {tensor.name: tensor.shape for tensor in shape.tensors()}

    assert found == expected
    assert len(list(shape.tensors())) == len(found)
    beside = sum(x.numel() for n, x in stored.items() if n.endswith(STORED_BUFFERS))
    assert shape.parameters == sum(p.numel() for p in model.parameters()) + beside


def _assert_same_attention(shape: ModelShape, model: PreTrainedModel) -> None:
    for shaped, block in zip(shape.blocks, _blocks(model), strict=True):
        module = getattr(block, "self_attn", None) or getattr(block, "attn", None)
        module = module or getattr(block, "attention", None)
        if hasattr(getattr(block, "mixer", None), "scaling"):
            module = block.mixer
        attention = shaped.attention
        assert (module is None) == (attention is None)
        if module is None or attention is None:
            continue
        window = getattr(module, "sliding_window", _model_window(model))
        window = window if getattr(module, "is_sliding", True) else None
        softcap = getattr(module, "attn_logit_softcapping", None)

        assert attention.scale == pytest.approx(module.scaling)
        assert attention.window == window
        assert attention.softcap == softcap


def _model_window(model: PreTrainedModel) -> int | None:
    uses_one = model.config.model_type in {"mistral", "ministral3", "phi3", "starcoder2"}
    return model.config.sliding_window if uses_one else None


def _assert_same_norms(shape: ModelShape, model: PreTrainedModel) -> None:
    for norm in shape.blocks[0].norms:
        module = _blocks(model)[0].get_submodule(norm.module)
        fixed = 1e-5 if norm.plain else None  # OLMo's norms have no weights, and no field for it
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", fixed))

        assert (norm.kind or shape.norm).eps == eps
        assert (shape.norm.kind == "layer") == ("LayerNorm" in type(module).__name__)


def _blocks(model: PreTrainedModel) -> Any:
    inner = model.base_model
    return getattr(inner, "layers", None) or inner.h
