"""Adapters of the decoder inside a vision-language model: named as the class that its folder loads as."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapters import random_tensors
from model_folders import TINY
from safetensors.numpy import load_file, save_file

from edgetune.adapters import CONFIG, WEIGHTS, load_adapter, save_adapter
from edgetune.adapters.modules import decoder_name, loaded_name
from edgetune.errors import ModelError
from edgetune.methods import METHODS, build
from edgetune.model import shape_of

SHAPE = shape_of({"model_type": "gemma3", "text_config": {**TINY, "model_type": "gemma3_text"}})
LORA = build("lora", {"rank": 2})
INSIDE = "base_model.model.model.language_model.layers."


def test_tensors_and_targets_are_those_of_the_wrapper(tmp_path: Path) -> None:
    save_adapter(tmp_path, LORA, SHAPE, random_tensors(LORA, SHAPE), base="base")
    targets = json.loads((tmp_path / CONFIG).read_text())["target_modules"]

    assert all(name.startswith(INSIDE) for name in load_file(tmp_path / WEIGHTS))
    assert len(targets) == sum(len(block.linears) for block in SHAPE.blocks)
    assert all(name.startswith("model.language_model.layers.") for name in targets)


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_is_read_back(kind: str, tmp_path: Path) -> None:
    method = build(kind, {})
    tensors = random_tensors(method.on_disk(), SHAPE)
    save_adapter(tmp_path, method, SHAPE, tensors, base="base")
    found = load_adapter(tmp_path, SHAPE)

    assert found.tensors.keys() == tensors.keys()
    assert found.unused == 0


@pytest.mark.parametrize("before", ["model.", "language_model.model.", "model.language_model."])
def test_names_of_other_versions_are_known(before: str, tmp_path: Path) -> None:
    tensors = random_tensors(LORA, SHAPE)
    save_adapter(tmp_path, LORA, SHAPE, tensors, base="base")
    stored = load_file(tmp_path / WEIGHTS)
    inside = "base_model.model.model.language_model."
    renamed = {name.replace(inside, f"base_model.model.{before}"): x for name, x in stored.items()}
    save_file(renamed, tmp_path / WEIGHTS)

    for name, values in load_adapter(tmp_path, SHAPE).tensors.items():
        np.testing.assert_array_equal(values, tensors[name])


def test_tensors_for_images_are_left_out_and_counted(tmp_path: Path) -> None:
    save_adapter(tmp_path, LORA, SHAPE, random_tensors(LORA, SHAPE), base="base")
    stored = load_file(tmp_path / WEIGHTS)
    eye = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"
    stored |= {f"{eye}.lora_A.weight": np.ones((2, 8), np.float32),
               f"{eye}.lora_B.weight": np.ones((8, 2), np.float32)}  # fmt: skip
    save_file(stored, tmp_path / WEIGHTS)

    assert load_adapter(tmp_path, SHAPE).unused == 2


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path, LORA, SHAPE, random_tensors(LORA, SHAPE), base="base")
    stored = load_file(tmp_path / WEIGHTS)
    name = next(iter(stored))
    stored[name.replace("model.language_model.", "language_model.model.")] = stored[name] + 1
    save_file(stored, tmp_path / WEIGHTS)

    with pytest.raises(ModelError, match="twice"):
        load_adapter(tmp_path, SHAPE)


def test_names_come_back() -> None:
    for tensor in SHAPE.tensors():
        there = loaded_name(SHAPE, tensor.name)
        assert decoder_name(SHAPE, there) == tensor.name
        assert there.startswith(("model.language_model.", "lm_head."))


def test_other_models_keep_their_names() -> None:
    plain = shape_of(TINY)
    for tensor in plain.tensors():
        assert loaded_name(plain, tensor.name) == decoder_name(plain, tensor.name) == tensor.name
