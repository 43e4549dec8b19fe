"""A model written as a GGUF file, opened from it, and written again: the same file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from adapters import random_adapter
from gguf_models import absorbed, fused
from model_folders import arrays_for, write_folder

import edgetune_profiles
from edgetune.errors import UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.gguf import rows as rows_module
from edgetune.exporters.gguf.compared import architecture_of
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.updates import Merge, merge_of
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel, shape_of
from edgetune.tensors.gguf.writer import OutgoingBlocks, Value

TINY = Path(edgetune_profiles.__file__).parent / "tiny"
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 7, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 1024, "max_position_embeddings": 512,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128,
}  # fmt: skip
LATENTS = SMALL | {
    "num_key_value_heads": 2, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
    "v_head_dim": 16, "moe_intermediate_size": 32, "n_routed_experts": 6, "num_experts_per_tok": 3,
    "n_shared_experts": 2, "num_nextn_predict_layers": 0,
}  # fmt: skip
GEMMA4 = SMALL | {
    "global_head_dim": 32, "sliding_window": 64,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"]
    + ["full_attention"] * 2,
}  # fmt: skip
GRANITE4 = SMALL | {
    "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4,
    "mamba_n_groups": 2, "mamba_d_state": 16, "shared_intermediate_size": 96,
    "logits_scaling": 2.0, "attention_multiplier": 0.25, "position_embedding_type": "nope",
}  # fmt: skip
GPT_OSS = SMALL | {
    "num_hidden_layers": 2, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 64,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "truncate": False,
        "original_max_position_embeddings": 128},
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
    "apertus": SMALL,
    "arcee": SMALL,
    "cohere": SMALL | {"logit_scale": 0.5},
    "cohere2": SMALL,
    "ernie4_5": SMALL,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": 1024},
    "deepseek_v2": LATENTS | {
        "num_hidden_layers": 27, "q_lora_rank": None, "n_routed_experts": 2,
        "num_experts_per_tok": 1, "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.0, "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}},
    "deepseek_v3": LATENTS | {
        "q_lora_rank": 32, "first_k_dense_replace": 2, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True},
    "exaone4": SMALL | {"sliding_window": None},
    "gemma3n_text": SMALL | {
        "num_hidden_layers": 22, "num_kv_shared_layers": 2, "sliding_window": 64,
        "rope_theta": 2e6, "rope_local_base_freq": 2e4, "vocab_size_per_layer_input": 1024,
        "layer_types": ["sliding_attention"] * 19 + ["full_attention"] * 2 + ["sliding_attention"]},
    "gemma4_text": GEMMA4 | {
        "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 1024,
        "num_kv_shared_layers": 3, "use_double_wide_mlp": True, "final_logit_softcapping": 20.0},
    "gemma4_mixture": GEMMA4 | {
        "hidden_size_per_layer_input": 0, "num_global_key_value_heads": 2, "attention_k_eq_v": True,
        "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 32},
    "glm4": SMALL,
    "gpt_bigcode": {"n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 1024},
    "hunyuan_v1_dense": SMALL,
    "lfm2": SMALL | {"layer_types": ["conv", "full_attention", "conv", "conv"] + ["conv"] * 3},
    "mpt": {"d_model": 32, "n_heads": 2, "n_layers": 2, "vocab_size": 1024},
    "olmo3": SMALL | {"sliding_window": 64, "rope_parameters": {
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}},
    "phi": SMALL | {"num_key_value_heads": 2},
    "qwen3_5_text": SMALL | {
        "num_hidden_layers": 4, "full_attention_interval": 2, "linear_num_key_heads": 2,
        "linear_num_value_heads": 6, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    "nemotron": SMALL,
    "mixtral": SMALL | {"num_local_experts": 4},
    "granitemoe": SMALL | {"num_local_experts": 4, "logits_scaling": 2.0},
    "olmoe": SMALL | {"num_key_value_heads": 2, "num_experts": 12},
    "qwen2_moe": SMALL | {"num_experts": 5, "moe_intermediate_size": 32,
                          "shared_expert_intermediate_size": 96},
    "qwen3_moe": SMALL | {"num_experts": 8, "moe_intermediate_size": 96, "norm_topk_prob": True},
    "qwen3_5_moe_text": SMALL | {
        "num_hidden_layers": 4, "full_attention_interval": 2, "linear_num_key_heads": 2,
        "linear_num_value_heads": 6, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 96},
    "granitemoehybrid": GRANITE4 | {"num_local_experts": 0},
    "granite4_mixture": GRANITE4 | {"num_local_experts": 5, "position_embedding_type": "rope"},
    "granite4_attention": SMALL | {
        "num_hidden_layers": 2, "layer_types": ["attention"] * 2, "shared_intermediate_size": 96,
        "num_local_experts": 5, "logits_scaling": 2.0, "attention_multiplier": 0.25,
        "position_embedding_type": "rope"},
    "falcon_h1": SMALL | {
        "num_hidden_layers": 2, "mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_n_groups": 2,
        "mamba_d_head": 16, "mamba_rms_norm": True, "mamba_norm_before_gate": False,
        "mamba_d_state": 16},
    "nemotron_h": SMALL | {
        "layers_block_type": ["mamba", "mlp", "attention", "mamba"], "mamba_num_heads": 6,
        "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16},
    "nemotron_h_moe": SMALL | {
        "layers_block_type": ["mamba", "moe", "attention", "mamba"], "mamba_num_heads": 6,
        "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16, "n_routed_experts": 5,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 96,
        "routed_scaling_factor": 2.5},
    "gpt_oss": GPT_OSS,
}  # fmt: skip
TYPES = {
    "gemma4_mixture": "gemma4_text", "granite4_mixture": "granitemoehybrid",
    "granite4_attention": "granitemoehybrid", "nemotron_h_moe": "nemotron_h",
}  # fmt: skip
"""What families call themselves that are a variant of another one."""
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
    folder = write_folder(
        tmp_path / "base", {"model_type": TYPES.get(family, family), **CONFIGS[family]}
    )
    first = _write(LocalModel.open(folder), tmp_path / "1.gguf", facts, quantization)
    second = _write(LocalModel.open(first), tmp_path / "2.gguf", facts, quantization)
    one, two = gguf.GGUFReader(first), gguf.GGUFReader(second)

    for key in one.fields.keys() - NAMED:
        assert one.fields[key].contents() == two.fields[key].contents(), key
    found = {tensor.name: tensor.data for tensor in two.tensors}
    assert found.keys() == {tensor.name for tensor in one.tensors}
    for tensor in one.tensors:
        # a logarithm and its exponential are not the very same number
        near = 1e-6 if tensor.name.endswith("ssm_a") else 0
        np.testing.assert_allclose(found[tensor.name], tensor.data, near, err_msg=tensor.name)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_read_back_is_the_model(tmp_path: Path, facts: TokenizerFacts, family: str) -> None:
    config = {"model_type": TYPES.get(family, family), **CONFIGS[family]}
    if family == "llama":
        config |= {"rope_parameters": LLAMA3}
    base = LocalModel.open(write_folder(tmp_path / "base", config))
    back = LocalModel.open(_write(base, tmp_path / "m.gguf", facts, "f32"))

    if family != "llama":  # whose rotation comes back as a table
        assert replace(back.shape, max_context=base.shape.max_context) == base.shape
    assert back.tensors.keys() == base.tensors.keys()
    for name in base.tensors:
        expected = base.read(name)
        np.testing.assert_allclose(back.read(name), expected, 1e-6, 1e-6, err_msg=name)
    for ours, theirs in zip(base.shape.attention, back.shape.attention, strict=True):
        assert (ours.window, ours.softcap) == (theirs.window, theirs.softcap)
        assert ours.scale == pytest.approx(theirs.scale)


@pytest.mark.parametrize(
    ("family", "types", "mixer"),
    [
        ("qwen3_5_text", {"full_attention_interval": 1}, "Gated DeltaNet"),
        ("qwen3_5_moe_text", {"full_attention_interval": 1}, "Gated DeltaNet"),
        ("nemotron_h", {"layers_block_type": ["attention", "mlp"] * 2}, "Mamba-2"),
    ],
)
def test_a_hybrid_of_attention_alone_is_refused(
    family: str, types: dict[str, Any], mixer: str
) -> None:
    shape = shape_of({"model_type": family} | CONFIGS[family] | types)

    with pytest.raises(UsageError, match=f"none of its layers is {mixer}"):
        architecture_of(shape)


def test_a_plain_rotation_of_apertus_stays_plain(tmp_path: Path, facts: TokenizerFacts) -> None:
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 333.0}}
    config = {"model_type": "apertus", **CONFIGS["apertus"], **plain}
    base = LocalModel.open(write_folder(tmp_path / "base", config))

    back = LocalModel.open(_write(base, tmp_path / "m.gguf", facts, "f32"))

    assert back.shape.rotaries == base.shape.rotaries
    assert {rotary.scaling for rotary in back.shape.rotaries} == {"none"}


@pytest.mark.parametrize("quantization", ["f32", "q8_0"])
@pytest.mark.parametrize("family", ["gemma4_mixture", "granitemoe", "qwen3_moe"])
def test_experts_whose_gate_and_up_lie_in_one_tensor_are_the_same(
    tmp_path: Path, facts: TokenizerFacts, family: str, quantization: Any
) -> None:
    config = {"model_type": TYPES.get(family, family), **CONFIGS[family]}
    base = LocalModel.open(write_folder(tmp_path / "base", config))
    apart = LocalModel.open(_write(base, tmp_path / "apart.gguf", facts, quantization))
    written = model_file(base, Merge(changes={}), quantization, facts)
    replace(written, tensors=tuple(_fused(written.tensors))).write(tmp_path / "fused.gguf")
    fused = LocalModel.open(tmp_path / "fused.gguf")

    assert fused.shape == apart.shape
    assert fused.tensors.keys() == apart.tensors.keys()
    for name in apart.tensors:
        np.testing.assert_array_equal(fused.read(name), apart.read(name), err_msg=name)


def _fused(tensors: tuple[OutgoingBlocks, ...]) -> Iterator[OutgoingBlocks]:
    """Yield a file's tensors, gate and up of each layer's experts in one, as llama.cpp converts."""
    by_name = {tensor.name: tensor for tensor in tensors}
    for tensor in tensors:
        if "ffn_up_exps" in tensor.name:
            continue
        if "ffn_gate_exps" not in tensor.name:
            yield tensor
            continue
        experts, rows, inputs = tensor.shape
        each = tensor, by_name[tensor.name.replace("gate", "up")]
        halves = [np.concatenate(list(x.chunks())).reshape(experts, rows, -1) for x in each]
        blocks = np.concatenate(halves, axis=1)
        yield replace(
            tensor,
            name=tensor.name.replace("gate", "gate_up"),
            shape=(experts, 2 * rows, inputs),
            chunks=lambda blocks=blocks: iter([blocks.reshape(-1, blocks.shape[-1])]),
        )


def test_experts_in_mx_fp4_are_copied(tmp_path: Path, facts: TokenizerFacts) -> None:
    """Of a folder and of a GGUF file, whatever is done to the other matrices."""
    config = {"model_type": "gpt_oss", **GPT_OSS, "quantization_config": {"quant_method": "mxfp4"}}
    draw, arrays = np.random.default_rng(0), arrays_for(config)
    for name in [name for name in arrays if ".experts." in name and name.endswith("weight")]:
        del arrays[name]
    for layer in range(GPT_OSS["num_hidden_layers"]):
        for module, outputs, groups in (("gate_up_proj", 128, 1), ("down_proj", 32, 2)):
            name = f"model.layers.{layer}.mlp.experts.{module}"
            codes = draw.integers(0, 256, (3, outputs, groups, 16), np.uint8)
            arrays[f"{name}_blocks"] = codes
            arrays[f"{name}_scales"] = draw.integers(118, 130, codes.shape[:-1], np.uint8)
    base = LocalModel.open(write_folder(tmp_path / "base", config, arrays=arrays))
    first = LocalModel.open(_write(base, tmp_path / "1.gguf", facts, "f16"))
    second = LocalModel.open(_write(first, tmp_path / "2.gguf", facts, "q8_0"))

    for name in (name for name in base.tensors if ".experts." in name):
        for model in (first, second):
            assert model.tensors[name].dtype == ("float32" if "bias" in name else "MXFP4")
            found = model.read(name)
            np.testing.assert_array_equal(found, base.read(name).astype(np.float32), err_msg=name)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_oss"])
def test_queries_keys_and_values_in_one_tensor_are_the_same(
    tmp_path: Path, facts: TokenizerFacts, family: str
) -> None:
    base = LocalModel.open(
        write_folder(tmp_path / "base", {"model_type": family, **CONFIGS[family]})
    )
    written = model_file(base, Merge(changes={}), "q8_0", facts)
    _write(base, tmp_path / "apart.gguf", facts, "q8_0")
    fused(written).write(tmp_path / "fused.gguf")
    apart, found = (LocalModel.open(tmp_path / x) for x in ("apart.gguf", "fused.gguf"))

    assert found.shape == apart.shape
    for name in apart.tensors:
        np.testing.assert_array_equal(found.read(name), apart.read(name), err_msg=name)


@pytest.mark.parametrize("quantization", ["f32", "q8_0"])
def test_keys_and_values_of_latents_in_two_tensors_are_put_together(
    tmp_path: Path, facts: TokenizerFacts, quantization: Any
) -> None:
    config = {"model_type": "deepseek_v3", **CONFIGS["deepseek_v3"], "qk_nope_head_dim": 32}
    base = LocalModel.open(write_folder(tmp_path / "base", config))
    written = model_file(base, Merge(changes={}), quantization, facts)
    absorbed(written, base.shape).write(tmp_path / "apart.gguf")
    whole = LocalModel.open(_write(base, tmp_path / "whole.gguf", facts, quantization))
    apart = LocalModel.open(tmp_path / "apart.gguf")

    assert replace(apart.shape, formats=None) == replace(whole.shape, formats=None)
    error = 0 if quantization == "f32" else 0.05  # blocks run along another axis
    for name in whole.tensors:
        near = error if "kv_b_proj" in name else 0
        np.testing.assert_allclose(apart.read(name), whole.read(name), 0, near, err_msg=name)
    assert apart.fingerprint != whole.fingerprint


def test_a_file_of_ollama_s_own_converter_with_a_tower_is_the_text_model(
    tmp_path: Path, facts: TokenizerFacts
) -> None:
    config = {"model_type": "gemma3_text", **CONFIGS["gemma3_text"]}
    stretched = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rms_norm_eps": 1e-6}
    more = {"max_position_embeddings": 131_072, "rope_local_base_freq": 2e4, **stretched}
    base = LocalModel.open(write_folder(tmp_path / "base", config | more))
    written = model_file(base, Merge(changes={}), "q8_0", facts)
    renamed = {
        "rope.freq_base": "rope.global.freq_base",
        "rope.freq_base_swa": "rope.local.freq_base",
    }
    unsaid = ("attention.layer_norm_rms_epsilon", "rope.scaling.type", "rope.scaling.factor")
    metadata = {
        f"gemma3.{renamed.get(short, short)}" if short != key else key: value
        for key, value in written.metadata.items()
        if (short := key.removeprefix("gemma3.")) not in unsaid
    }
    tower = [replace(written.tensors[1], name=x) for x in ("v.blk.0.ln1.weight", "mm.x.weight")]
    replace(
        written,
        metadata=metadata | {"gemma3.vision.block_count": Value("uint32", 1)},
        tensors=(*written.tensors, *tower),
    ).write(tmp_path / "seeing.gguf")
    plain = LocalModel.open(_write(base, tmp_path / "plain.gguf", facts, "q8_0"))
    model = LocalModel.open(tmp_path / "seeing.gguf")

    assert model.shape == replace(plain.shape, tower=True)
    assert model.tensors.keys() == plain.tensors.keys()
    assert all("left out" in x for x in model_file(model, Merge(changes={}), "q8_0", facts).notes)


def test_a_gpt_oss_of_ollama_s_own_converter_is_read(tmp_path: Path, facts: TokenizerFacts) -> None:
    base = LocalModel.open(write_folder(tmp_path / "base", {"model_type": "gpt_oss", **GPT_OSS}))
    written = model_file(base, Merge(changes={}), "q8_0", facts)
    names = {
        "attn_output": "attn_out", "attn_sinks.weight": "attn_sinks", "post_attention_norm": "ffn_norm",
    }  # fmt: skip
    tensors = []
    for tensor in written.tensors:
        found = next((x for x in names if f".{x}" in tensor.name), "")
        tensors.append(replace(tensor, name=tensor.name.replace(found, names.get(found, ""))))
    unsaid = ("gpt-oss.expert_feed_forward_length", "gpt-oss.rope.scaling.type")
    metadata = {
        key.replace("gpt-oss.", "gptoss."): value
        for key, value in written.metadata.items()
        if key not in unsaid
    } | {"general.architecture": Value("string", "gptoss")}
    file = replace(written, metadata=metadata, tensors=tuple(tensors))
    file.write(tmp_path / "ollama.gguf")
    plain = LocalModel.open(_write(base, tmp_path / "plain.gguf", facts, "q8_0"))
    model = LocalModel.open(tmp_path / "ollama.gguf")

    assert model.shape == plain.shape
    assert model.tensors.keys() == plain.tensors.keys()


def test_layers_that_guess_further_tokens_stay_unread(
    tmp_path: Path, facts: TokenizerFacts
) -> None:
    config = {"model_type": "qwen3_5_text", **CONFIGS["qwen3_5_text"]}
    base = LocalModel.open(write_folder(tmp_path / "base", config))
    alone = LocalModel.open(_write(base, tmp_path / "alone.gguf", facts, "f32"))
    written = model_file(base, Merge(changes={}), "f32", facts)
    layers = base.shape.layers
    one = next(tensor for tensor in written.tensors if tensor.name == "blk.1.attn_norm.weight")
    further = [
        replace(one, name=f"blk.{layers}.{name}.weight") for name in ("attn_norm", "nextn.enorm")
    ]
    metadata = dict(written.metadata)
    metadata["qwen35.block_count"] = Value("uint32", layers + 1)
    metadata["qwen35.nextn_predict_layers"] = Value("uint32", 1)
    file = replace(written, metadata=metadata, tensors=(*written.tensors, *further))
    file.write(tmp_path / "guessing.gguf")
    model = LocalModel.open(tmp_path / "guessing.gguf")

    assert model.shape == alone.shape
    assert model.tensors.keys() == alone.tensors.keys()


@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoe"])
def test_updates_of_experts_are_in_the_matrices_of_the_file(
    tmp_path: Path, facts: TokenizerFacts, family: str
) -> None:
    folder = write_folder(tmp_path / "base", {"model_type": family, **CONFIGS[family]})
    base = LocalModel.open(folder)
    adapter = random_adapter(Lora(rank=2, targets=("experts",)), base.shape)
    merge = merge_of(adapter, base)
    model_file(base, merge, "f32", facts).write(tmp_path / "m.gguf")
    back = LocalModel.open(tmp_path / "m.gguf")

    changed = {name for name in base.tensors if ".experts." in name}
    assert merge.changes.keys() == changed
    for name in changed:
        expected = np.array(base.read(name), np.float32)
        before = expected.copy()
        merge.changes[name].apply(expected, 0, len(expected))
        np.testing.assert_allclose(back.read(name), expected, 1e-6, 1e-6, err_msg=name)
        assert np.abs(expected - before).max() > 1e-3


def test_a_head_that_is_written_of_a_tied_model_gets_the_bits_of_a_head(
    tmp_path: Path, facts: TokenizerFacts
) -> None:
    """Its multiplier is another than the embedding's, so that the file has both."""
    wide = {"hidden_size": 256, "tie_word_embeddings": True}
    for scale, embedding, head in ((0.5, "Q4_K", "Q6_K"), (1.0, "Q6_K", None)):
        config = {
            "model_type": "falcon_h1",
            **CONFIGS["falcon_h1"],
            **wide,
            "lm_head_multiplier": scale,
        }
        base = LocalModel.open(write_folder(tmp_path / f"{scale}", config))
        written = model_file(base, Merge(changes={}), "q4_k_m", facts)
        types = {tensor.name: tensor.type.name for tensor in written.tensors}
        assert (types["token_embd.weight"], types.get("output.weight")) == (embedding, head)


def test_what_is_multiplied_into_a_file_s_weights_is_no_adapter_of_peft(
    tmp_path: Path, facts: TokenizerFacts
) -> None:
    """PEFT would load it over the checkpoint, whose multipliers are beside the weights."""
    own = {"model_type": "falcon_h1", "key_multiplier": 0.25, "attention_in_multiplier": 0.5}
    base = LocalModel.open(write_folder(tmp_path / "base", CONFIGS["falcon_h1"] | own))
    read = LocalModel.open(_write(base, tmp_path / "base.gguf", facts, "f32"))
    adapter = random_adapter(Lora(rank=3, targets=("k_proj",)), base.shape)
    request = ExportRequest(adapter=adapter, model=read, output=tmp_path / "out")
    k_proj = "model.layers.0.self_attn.k_proj.weight"
    np.testing.assert_allclose(read.read(k_proj), 0.125 * base.read(k_proj), rtol=1e-6)

    with pytest.raises(
        UsageError, match=r"has its multipliers in its weights.*--to gguf --adapter"
    ):
        export("peft", request)
    assert not request.output.exists()
    export("gguf", replace(request, alone=True, output=tmp_path / "lora.gguf"))
    export("peft", replace(request, model=base))


@pytest.mark.parametrize("source", ["folder", "file"])
@pytest.mark.parametrize("chunk", [700, None])
def test_experts_that_are_stored_turned_are_read_once_a_tensor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    facts: TokenizerFacts,
    source: str,
    chunk: int | None,
) -> None:
    """Of a folder in plain numbers and of a GGUF file of it, in runs of rows or all at once."""
    base = LocalModel.open(write_folder(tmp_path / "base", {"model_type": "gpt_oss", **GPT_OSS}))
    if source == "file":
        base = LocalModel.open(_write(base, tmp_path / "base.gguf", facts, "f32"))
    if chunk is not None:
        monkeypatch.setattr("edgetune.tensors.writer.CHUNK_ELEMENTS", chunk)
    counted: Counter[tuple[str, int]] = Counter()
    read = rows_module.read_rows

    def counting(stored: Any, start: int, stop: int) -> Any:
        counted[stored.name, stored.start] += stop - start
        return read(stored, start, stop)

    monkeypatch.setattr(rows_module, "read_rows", counting)
    back = LocalModel.open(_write(base, tmp_path / "m.gguf", facts, "f32"))

    for name in (name for name in base.tensors if ".experts." in name):
        stored = base.tensors[name]
        np.testing.assert_array_equal(back.read(name), base.read(name), err_msg=name)
        tensors = 2 if "gate_up" in name else 1
        if name.endswith("weight"):
            assert counted[stored.name, stored.start] == tensors * stored.shape[0], name


WINDOWS = "attention.sliding_window"
PATTERN = f"{WINDOWS}_pattern"


@pytest.mark.parametrize(
    ("family", "said", "windowed"),
    [
        ("gemma2", {}, [1, 0, 1, 0, 1, 0, 1]),
        ("gemma3_text", {}, [1, 1, 1, 1, 1, 0, 1]),
        ("gemma3_text", {WINDOWS: None}, [0, 0, 0, 0, 0, 0, 0]),
        ("gemma3_text", {PATTERN: Value("uint32", 3)}, [1, 1, 0, 1, 1, 0, 1]),
        ("gemma3_text", {PATTERN: Value("bool", [True] + [False] * 6)}, [1, 0, 0, 0, 0, 0, 0]),
        ("cohere2", {PATTERN: Value("uint32", 2)}, [1, 0, 1, 0, 1, 0, 1]),
        ("gemma2", {PATTERN: Value("bool", [False] * 7)}, [0] * 7),
    ],
)  # fmt: skip
def test_a_file_says_which_layers_see_a_window(
    tmp_path: Path,
    facts: TokenizerFacts,
    family: str,
    said: dict[str, Value | None],
    windowed: list[int],
) -> None:
    base = LocalModel.open(
        write_folder(tmp_path / "base", {"model_type": family, **CONFIGS[family]})
    )
    written = model_file(base, Merge(changes={}), "f32", facts)
    prefix = written.metadata["general.architecture"].content
    changes = {f"{prefix}.{key}": value for key, value in said.items()}
    metadata = {**written.metadata, **changes}
    kept = {key: value for key, value in metadata.items() if value is not None}
    replace(written, metadata=kept).write(tmp_path / "m.gguf")
    model = LocalModel.open(tmp_path / "m.gguf")

    assert [int(rule.window is not None) for rule in model.shape.attention] == windowed
