"""A model written as a GGUF file, opened from it, and written again: the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from model_folders import write_folder

import edgetune_profiles
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.updates import Merge
from edgetune.model import LocalModel

TINY = Path(edgetune_profiles.__file__).parent / "tiny"
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 7, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 1024, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL,
    "gemma": SMALL,
    "gemma2": SMALL | {"query_pre_attn_scalar": 16},
    "gemma3_text": SMALL | {"query_pre_attn_scalar": 16},
    "phi3": SMALL,
    "gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 1024},
    "gpt_neox": SMALL | {"num_key_value_heads": 2},
    "arcee": SMALL,
    "cohere": SMALL | {"logit_scale": 0.5},
    "cohere2": SMALL,
    "ernie4_5": SMALL,
    "nemotron": SMALL,
    "mixtral": SMALL | {"num_local_experts": 4},
    "granitemoe": SMALL | {"num_local_experts": 4, "logits_scaling": 2.0},
    "olmoe": SMALL | {"num_key_value_heads": 2, "num_experts": 12},
    "qwen2_moe": SMALL | {"num_experts": 5, "moe_intermediate_size": 32,
                          "shared_expert_intermediate_size": 96},
    "qwen3_moe": SMALL | {"num_experts": 8, "moe_intermediate_size": 96, "norm_topk_prob": True},
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
NAMED = frozenset({"general.name", "GGUF.tensor_count", "GGUF.kv_count"})


@pytest.fixture(scope="module")
def facts() -> TokenizerFacts:
    return TokenizerFacts.read(TINY)


def _write(model: LocalModel, file: Path, facts: TokenizerFacts, quantization: Any) -> Path:
    model_file(model, Merge(changes={}), quantization, facts).write(file)
    return file


@pytest.mark.parametrize("quantization", ["f32", "q8_0"])
@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_read_back_is_written_the_same(
    tmp_path: Path, facts: TokenizerFacts, family: str, quantization: str
) -> None:
    folder = write_folder(tmp_path / "base", {"model_type": family, **CONFIGS[family]})
    first = _write(LocalModel.open(folder), tmp_path / "1.gguf", facts, quantization)
    second = _write(LocalModel.open(first), tmp_path / "2.gguf", facts, quantization)
    one, two = gguf.GGUFReader(first), gguf.GGUFReader(second)

    for key in one.fields.keys() - NAMED:
        assert one.fields[key].contents() == two.fields[key].contents(), key
    found = {tensor.name: tensor.data for tensor in two.tensors}
    assert found.keys() == {tensor.name for tensor in one.tensors}
    for tensor in one.tensors:
        np.testing.assert_array_equal(found[tensor.name], tensor.data, err_msg=tensor.name)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_read_back_is_the_model(tmp_path: Path, facts: TokenizerFacts, family: str) -> None:
    config = {"model_type": family, **CONFIGS[family]}
    if family == "llama":
        config |= {"rope_parameters": LLAMA3}
    base = LocalModel.open(write_folder(tmp_path / "base", config))
    back = LocalModel.open(_write(base, tmp_path / "m.gguf", facts, "f32"))

    assert back.tensors.keys() == base.tensors.keys()
    for name in base.tensors:
        expected = base.read(name)
        np.testing.assert_allclose(back.read(name), expected, 1e-6, 1e-6, err_msg=name)
    for ours, theirs in zip(base.shape.attention, back.shape.attention, strict=True):
        assert (ours.window, ours.softcap) == (theirs.window, theirs.softcap)
        assert ours.scale == pytest.approx(theirs.scale)
