"""Configs become shapes; what cannot be trained is refused by name, with every reason at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import TINY

from edgetune.errors import ModelError
from edgetune.model import shape_of
from edgetune.model.families import supported
from edgetune.model.names import is_extra
from edgetune.network.mixers.state_space import StateSpace
from edgetune.profile import model_profile
from edgetune.shape import ModelShape

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}


def _published(name: str) -> ModelShape:
    return shape_of(model_profile(name).config)


def test_llama_counts_by_the_formula() -> None:
    d, f, layers, v, kv = 4096, 14336, 32, 128256, 8 * 128
    block = 2 * d * d + 2 * d * kv + 3 * d * f + 2 * d

    assert _published("llama-3.1-8b").parameters == 2 * v * d + layers * block + d


def test_a_tied_head_is_no_tensor() -> None:
    names = [tensor.name for tensor in _published("smollm2-135m").tensors()]

    assert "lm_head.weight" not in names
    assert "lm_head.weight" in [tensor.name for tensor in _published("llama-7b").tensors()]


def test_gemma2_alternates_windows_and_caps_scores() -> None:
    shape = _published("gemma-2-27b")

    assert [layer.window for layer in shape.attention[:4]] == [4096, None, 4096, None]
    assert {layer.scale for layer in shape.attention} == {144**-0.5}
    assert {layer.softcap for layer in shape.attention} == {50.0}
    assert (shape.logit_softcap, shape.norm.offset, shape.tied) == (30.0, 1.0, True)
    assert shape.embedding_scale == 4608**0.5
    assert (shape.blocks[0].activation, shape.blocks[0].head_dim) == ("gelu_tanh", 128)


def test_gemma3_has_five_local_layers_to_one_global() -> None:
    shape = _published("gemma-3-4b")
    local, whole = shape.attention[4], shape.attention[5]

    assert (local.window, whole.window) == (1024, None)
    assert local.rotary is not None
    assert whole.rotary is not None
    assert (local.rotary.theta, local.rotary.scaling) == (1e4, "none")
    assert (whole.rotary.theta, whole.rotary.scaling, whole.rotary.factor) == (1e6, "linear", 8.0)
    assert shape.dtype == "bfloat16"


def test_the_smallest_published_gemma3_config_is_enough() -> None:
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    shape = shape_of({"model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16"})

    assert shape == _published("gemma-3-4b")


def test_gpt_neox_is_parallel_and_interleaved() -> None:
    shape = _published("pythia-160m")
    block = shape.blocks[0]
    rule = block.attention.rotary

    assert (block.parallel, block.interleaved_qkv, shape.head) == (True, True, "embed_out")
    assert rule is not None
    assert (rule.dimensions, block.head_dim) == (16, 64)


def test_gpt2_stores_its_matrices_the_other_way_round() -> None:
    shapes = {tensor.name: tensor.shape for tensor in _published("gpt2").tensors()}

    assert shapes["transformer.h.0.attn.c_attn.weight"] == (768, 3 * 768)
    assert shapes["transformer.h.0.mlp.c_fc.weight"] == (768, 4 * 768)
    assert shapes["transformer.wpe.weight"] == (1024, 768)


def test_qwen2_windows_only_when_switched_on() -> None:
    config = TINY | {"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1}
    on, off = (shape_of(config | {"use_sliding_window": on}) for on in (True, False))

    assert [layer.window for layer in on.attention] == [None, 8]
    assert [layer.window for layer in off.attention] == [None, None]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_windows_may_be_in_all_layers_and_none(family: str) -> None:
    config = TINY | {"model_type": family, "use_sliding_window": True}
    every = shape_of(config | {"max_window_layers": 0})
    none = shape_of(config | {"max_window_layers": 0, "sliding_window": None})

    assert [layer.window for layer in every.attention] == [4096, 4096]
    assert [layer.window for layer in none.attention] == [None, None]


def test_a_missing_window_of_mistral_differs_from_none() -> None:
    config = TINY | {"model_type": "mistral"}

    assert shape_of(config).attention[0].window == 4096
    assert shape_of(config | {"sliding_window": None}).attention[0].window is None


def test_granite_multiplies() -> None:
    multipliers = {
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.0078125,
    }
    shape = shape_of(TINY | {"model_type": "granite", **multipliers})

    assert (shape.embedding_scale, shape.logit_scale, shape.residual_scale) == (12.0, 0.125, 0.22)
    assert shape.attention[0].scale == 0.0078125


@pytest.mark.parametrize("spelling", ["dtype", "torch_dtype"])
def test_the_number_type_has_two_spellings(spelling: str) -> None:
    assert shape_of(TINY | {spelling: "bfloat16"}).dtype == "bfloat16"
    assert shape_of(TINY).dtype == "float32"


@pytest.mark.parametrize(
    ("written", "dtype"),
    [({}, "bfloat16"), ({"torch_dtype": None}, "bfloat16"), ({"dtype": "float32"}, "float32"),
     ({"torch_dtype": "float32"}, "float32")],
)  # fmt: skip
def test_gpt_oss_is_published_without_its_number_type(written: dict[str, Any], dtype: str) -> None:
    config = TINY | {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}

    assert shape_of(config | written).dtype == dtype


def test_every_problem_is_named_at_once() -> None:
    config = TINY | {
        "hidden_size": "8",
        "num_hidden_layers": None,
        "hidden_act": "tanhshrink",
        "attention_bias": 1,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
    }

    with pytest.raises(ModelError) as caught:
        shape_of(config)

    for part in ("hidden_size", "num_hidden_layers is missing", "'tanhshrink'", "'dynamic'"):
        assert part in str(caught.value)
    assert "attention_bias must be true or false; found 1" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_attention_heads": 3}, "8 is not a multiple of 3 heads"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"vocab_size": 0}, "vocab_size must be a whole number from 1 to 2,147,483,647; found 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"torch_dtype": "float8"}, "dtype must be one of"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' needs a factor"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "short_factor must be a list of 2"),
        ({"rope_scaling": []}, "rope_scaling must be a mapping"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "this family rotates all"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but"),
        ({"head_dim": 3}, "3 channels of a head cannot be rotated in pairs"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 10,000"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "must be above low_freq_factor"),
        ({"rope_theta": -1.0}, "rope_theta must be above 0; found -1.0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number"),
    ],
)
def test_a_wrong_field_is_explained(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json of this llama model") as caught:
        shape_of(TINY | fields)

    assert problem in str(caught.value)


def test_a_problem_inside_the_text_config_says_so() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": -1}

    with pytest.raises(ModelError, match="text_config: hidden_size must be"):
        shape_of({"model_type": "gemma3", "text_config": text})


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "dbrx", "num_local_experts": 8}, "a mixture of experts"),
        ({"model_type": "qwen3_next"}, "a mixture of experts"),
        ({"model_type": "llama4", "text_config": {"num_local_experts": 16}}, "mixture of experts"),
        ({"model_type": "bert"}, "an encoder"),
        ({"model_type": "modernbert"}, "an encoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder-decoder"),
        ({"model_type": "qwen2_5_vl"}, "a vision-language model"),
        ({"model_type": "other", "vision_config": {"a": 1}}, "a vision-language model"),
        ({"model_type": "mamba2"}, "a recurrent or state-space model"),
        ({"model_type": "whisper"}, "an audio model"),
        ({"model_type": "kimi_linear"}, "a hybrid of attention"),
    ],
)
def test_other_kinds_of_model_are_refused_by_name(config: dict[str, Any], kind: str) -> None:
    with pytest.raises(ModelError, match=r"Supported: .* others \(docs/models\.md\)\.") as caught:
        shape_of(config)

    assert f"{config['model_type']!r} (" in str(caught.value)
    assert kind in str(caught.value)


def test_an_unheard_of_type_is_refused_with_the_list() -> None:
    with pytest.raises(ModelError, match=r"type 'abacus'\. Supported: gemma3, llama, .* others"):
        shape_of({"model_type": "abacus"})
    with pytest.raises(ModelError, match="has no model_type"):
        shape_of({})
    assert list(supported()) == sorted(supported())


@pytest.mark.parametrize("field", ["quantization_config", "quantization"])
def test_a_model_that_is_quantized_in_another_way_is_refused(field: str) -> None:
    with pytest.raises(ModelError, match="already quantized with HQQ"):
        shape_of(TINY | {field: {"quant_method": "hqq", "bits": 4}})
    read = {field: {"quant_method": "gptq", "bits": 4}}
    assert shape_of(TINY | read) == shape_of(TINY)


@pytest.mark.parametrize(
    ("family", "switch"),
    [
        ("gemma3_text", "use_bidirectional_attention"),
        ("gpt2", "add_cross_attention"),
        ("stablelm", "qk_layernorm"),
        ("cohere", "use_qk_norm"),
    ],
)
def test_a_switch_that_would_be_ignored_is_refused(family: str, switch: str) -> None:
    gpt2 = {"n_embd": 8, "n_head": 2, "n_layer": 1}

    with pytest.raises(ModelError, match=f"{switch} is True: "):
        shape_of(TINY | gpt2 | {"model_type": family, switch: True})


@pytest.mark.parametrize("gate", [None, "swish", "silu", "sigmoid", 1])
@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_5_moe_text"])
def test_qwen3_5_has_one_gate_behind_its_recurrence(family: str, gate: object) -> None:
    layers = {"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2}
    config = TINY | layers | {"model_type": family, "output_gate_type": gate}
    if gate in (None, "swish", "silu"):
        assert shape_of(config).family == family
        return
    with pytest.raises(ModelError, match=f"output_gate_type is {gate!r}: only swish"):
        shape_of(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["mamba"] * 2}, "none of its layers has attention"),
        ({"layer_types": ["mamba", "swa"]}, r"unsupported types: \['swa'\]"),
        ({"mamba_n_heads": 3}, "mamba_n_heads 3 of 5 numbers are not 16 in all"),
        ({"mamba_n_groups": 3}, "4 heads of its Mamba layers cannot share 3 groups evenly"),
        ({"mamba_d_conv": 1}, "convolve one token"),
        ({"time_step_limit": [0.1, 0.1]}, "time_step_limit must be two rising numbers"),
        ({"time_step_limit": "none"}, "time_step_limit must be two rising numbers"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu: Mamba layers are supported with silu alone"),
    ],
)
def test_layers_that_scan_are_refused_for_what_cannot_be_computed(
    changes: dict[str, object], words: str
) -> None:
    config = TINY | {
        "model_type": "granitemoehybrid", "num_hidden_layers": 2, "hidden_size": 8,
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "num_local_experts": 0,
    }  # fmt: skip
    renamed = {**config, "layers_block_type": config["layer_types"]}
    del renamed["layer_types"]
    assert shape_of(config).blocks[0].attention is None
    assert shape_of(renamed).blocks == shape_of(config).blocks
    with pytest.raises(ModelError, match=words):
        shape_of(config | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hybrid_override_pattern": "M-M"}, "none of its layers has attention"),
        ({"moe_latent_size": 4}, "moe_latent_size is 4: experts that read less than the stream"),
        ({"n_shared_experts": 2}, "n_shared_experts is not 1"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but there are 8 experts"),
        ({"n_group": 3}, "n_group is 3 and topk_group 1: 8 experts cannot be chosen so"),
        ({"n_group": 8, "topk_group": 2}, "n_group leaves groups of one expert"),
        ({"hybrid_override_pattern": "M*x"}, r"must say of each layer .*found 'M\*x'"),
        ({"hybrid_override_pattern": None}, "must say of each layer"),
        ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act is gelu: only silu"),
        ({"n_groups": 3}, "4 heads of its Mamba layers cannot share 3 groups"),
        ({"sliding_window": 8}, "sliding_window is 8: "),
    ],
)
def test_layers_of_one_half_are_refused_for_what_cannot_be_computed(
    changes: dict[str, object], words: str
) -> None:
    config = TINY | {
        "model_type": "nemotron_h", "hybrid_override_pattern": "M*-E", "mamba_num_heads": 4,
        "n_groups": 2,
    }  # fmt: skip
    scans, attends, feeds, mixes = shape_of(config).blocks
    assert (scans.feeds, attends.feeds, feeds.mixer, mixes.mixer) == (False, False, None, None)
    assert (feeds.experts, mixes.shared) == (None, True)
    with pytest.raises(ModelError, match=words):
        shape_of(config | changes)


def test_nemotron_3_has_no_gates_and_one_expert_for_all() -> None:
    shape = _published("nemotron-3-nano-30b-a3b")

    block = shape.blocks[1]
    assert [sum(k.experts is not None for k in shape.blocks), len(shape.attention)] == [23, 6]
    assert block.experts is not None
    assert not block.experts.gated
    assert [x.role for x in block.expert_stacks] == ["up", "down"]
    assert block.ffn_size == 3712
    # of 128 experts a token goes through 6, and through the one for all
    active = shape.parameters - 23 * (128 - 6) * 2 * 2688 * 1856
    assert 3.5e9 < active < 3.7e9


def test_names_that_fields_of_nemotron_h_had_are_read() -> None:
    now = {"n_groups": 2, "conv_kernel": 3, "use_conv_bias": False, "time_step_min": 0.5}
    names = ("mamba_n_groups", "mamba_d_conv", "mamba_conv_bias", "mamba_dt_min")
    config = TINY | {"model_type": "nemotron_h", "mamba_num_heads": 4}
    listed = {"layers_block_type": ["linear_attention", "full_attention", "moe"]}
    earlier = dict(zip(names, now.values(), strict=True)) | {"hybrid_override_pattern": "M*E"}
    assert shape_of(config | now | listed) == shape_of(config | earlier)


def test_steps_without_an_upper_limit_are_read_as_they_are_written() -> None:
    for most in (float("inf"), {"__float__": "Infinity"}):
        config = {"model_type": "granitemoehybrid", "time_step_limit": [0.5, most]}
        layers = {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "num_local_experts": 0}
        shape = shape_of(TINY | {"num_hidden_layers": 2, "hidden_size": 8} | config | layers)
        mixer = shape.blocks[0].mixer
        assert isinstance(mixer, StateSpace)
        assert (mixer.least_step, mixer.most_step) == (0.5, float("inf"))


def test_falcon_h1_shares_keys_unless_its_config_says_null() -> None:
    own = TINY | {"model_type": "falcon_h1", "num_attention_heads": 16, "head_dim": 8}
    own.pop("num_key_value_heads", None)
    assert shape_of(own).blocks[0].kv_heads == 8
    assert shape_of(own | {"num_key_value_heads": None}).blocks[0].kv_heads == 16


def test_gemma_3n_has_four_streams_sparse_layers_and_readers() -> None:
    shape = _published("gemma-3n-e2b")

    assert shape.stream_size == 4 * 2048
    assert [block.cutoff for block in shape.blocks[:10]] == pytest.approx([1.644854] * 10)
    assert {block.cutoff for block in shape.blocks[10:]} == {None}
    assert shape.lenders == (18, 19)
    assert [shape.source(layer) for layer in (19, 20, 24, 29)] == [None, 18, 19, 19]
    assert not any(block.splits for block in shape.blocks)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"altup_active_idx": 4}, "altup_active_idx is 4: there are 4 streams"),
        ({"activation_sparsity_pattern": [0.5]}, "must be 35 shares below 1; found"),
        ({"activation_sparsity_pattern": [1.0] * 35}, "must be 35 shares below 1; found"),
        ({"intermediate_size": [8]}, "intermediate_size must be"),
        ({"intermediate_size": [0] * 35}, "intermediate_size must be 35 sizes; found"),
        ({"num_kv_shared_layers": 35}, "num_kv_shared_layers is 35 of 35 layers"),
    ],
)
def test_a_gemma_3n_is_refused_for_what_its_config_cannot_mean(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        shape_of({"model_type": "gemma3n_text", **changes})


DEEPSEEK = TINY | {
    "model_type": "deepseek_v3", "num_hidden_layers": 4, "hidden_size": 8,
    "num_attention_heads": 2, "num_key_value_heads": 2, "n_group": 4, "n_routed_experts": 16,
}  # fmt: skip


def test_the_first_layers_of_a_deepseek_model_are_dense() -> None:
    shape = shape_of(DEEPSEEK | {"num_nextn_predict_layers": 1})

    assert [block.experts is None for block in shape.blocks] == [True, True, True, False]
    assert shape.blocks[3].shared
    assert is_extra(shape, "model.layers.4.eh_proj.weight")
    assert not is_extra(shape, "model.layers.5.eh_proj.weight")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_key_value_heads": 1}, "num_key_value_heads is not num_attention_heads"),
        ({"v_head_dim": 200}, "v_head_dim is 200, more than the 192 channels of a key"),
        ({"n_group": 3}, "n_group is 3 and topk_group 4: 16 experts cannot be chosen so"),
        ({"topk_group": 1}, "num_experts_per_tok is 8, but 1 of 4 groups have 4 of 16 experts"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok is 17, but there are 16 experts"),
        ({"n_group": 16, "topk_group": 8}, "n_group leaves groups of one expert"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is not 1"),
        ({"model_type": "deepseek_v2", "norm_topk_prob": True}, "norm_topk_prob is True"),
        ({"model_type": "deepseek_v2", "topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ({"model_type": "deepseek_v2", "scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ({"model_type": "deepseek_v3", "topk_method": "greedy"}, "topk_method is 'greedy'"),
        ({"model_type": "glm4_moe_lite", "first_k_dense_replace": 2}, "first_k_dense_replace"),
        ({"model_type": "glm4_moe_lite", "mlp_layer_types": ["moe"] * 4}, "unsupported types"),
    ],
)
def test_latents_and_groups_are_refused_for_what_cannot_be_computed(
    changes: dict[str, object], words: str
) -> None:
    assert shape_of(DEEPSEEK).attention[0].latent is not None
    with pytest.raises(ModelError, match=words):
        shape_of(DEEPSEEK | changes)


def test_phi_3_5_moe_has_the_published_number_of_parameters() -> None:
    config = {
        "model_type": "phimoe", "hidden_size": 4096, "intermediate_size": 6400,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32064, "num_local_experts": 16, "attention_bias": True, "lm_head_bias": True,
    }  # fmt: skip
    assert shape_of(config).parameters == 41_873_153_344
    scaled = {"short_mscale": 1.2, "long_mscale": 1.3, "rope_type": "longrope"}
    with pytest.raises(ModelError, match="only longrope with one factor for all lengths"):
        shape_of(config | {"rope_scaling": scaled})
    with pytest.raises(ModelError, match="num_experts_per_tok is 3: SparseMixer chooses 2"):
        shape_of(config | {"num_experts_per_tok": 3})


STRANGE = (
    None,
    True,
    0,
    -1,
    1,
    3,
    10**400,
    0.5,
    -0.5,
    float("inf"),
    "x",
    "",
    [],
    [1],
    {},
    {"a": 1},
)
FIELDS = sorted(
    {name for model in ("gemma-2-2b", "llama-3.1-8b", "gpt2", "pythia-160m", "phi-3.5-mini")
     for name in model_profile(model).config}
    | {"head_dim", "layer_types", "no_rope_layers", "sliding_window_pattern", "rope_parameters"}
    - {"model_type"}
)  # fmt: skip
TABLES = st.dictionaries(
    st.sampled_from(["rope_type", "factor", "rope_theta", "original_max_position_embeddings"]),
    st.sampled_from([*STRANGE, "yarn", "linear", "longrope"]),
)


@settings(max_examples=400, deadline=None)
@given(
    family=st.sampled_from(supported()),
    fields=st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(STRANGE)),
    table=TABLES,
)
def test_no_config_raises_anything_else(
    family: str, fields: dict[str, Any], table: dict[str, Any]
) -> None:
    config = TINY | {"rope_scaling": table} | fields | {"model_type": family}

    try:
        shape = shape_of(config)
    except ModelError:
        return
    assert shape.parameters > 0
