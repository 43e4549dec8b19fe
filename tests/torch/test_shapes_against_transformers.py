"""Every shape equals the model that transformers builds from the same config, on the meta device."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_wrapper
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

Config = dict[str, Any]
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
    config = _random_config(family, seed)
    shape, model = shape_of(config), _meta_model(config)

    _assert_same_tensors(shape, model)
    if family not in OLD:
        _assert_same_attention(shape, model)
        _assert_same_norms(shape, model)


@pytest.mark.parametrize("shard_size", ["1GB", "4KB"])
@pytest.mark.parametrize("family", [name for name in supported() if name not in INSIDE])
def test_what_transformers_saves_can_be_opened(
    family: str, shard_size: str, tmp_path: Path
) -> None:
    config = _random_config(family, 0)
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


def _random_config(family: str, seed: int) -> Config:
    draw = random.Random(f"{family} {seed}")
    make: Callable[[random.Random], Config] = {
        "gpt2": _gpt2,
        "gpt_neox": _gpt_neox,
        "gpt_bigcode": _gpt_bigcode,
        "gptj": _gptj,
        "gpt_neo": _gpt_neo,
        "bloom": _bloom,
        "mpt": _mpt,
        "opt": _opt,
        "falcon": _falcon,
        "falcon_h1": _falcon_h1,
        "granitemoehybrid": _granite4,
        "nemotron_h": _nemotron_h,
        "helium": _helium,
        "deepseek_v2": _deepseek_v2,
        "deepseek_v3": _deepseek_v3,
        "glm4_moe_lite": _glm4_moe_lite,
        "lfm2": _lfm2,
        "hunyuan_v1_dense": _with_head_size("hunyuan_v1_dense"),
        "ministral": _with_head_size("ministral"),
        "qwen3_5_moe_text": _qwen3_5_moe,
        "qwen3_5_text": _qwen3_5,
        "gemma4_text": _gemma4,
        "gemma4_unified_text": _gemma4_unified,
    }.get(family, lambda draw: _common(family, draw))
    if family in INSIDE:
        inner = draw.choice(INSIDE[family])
        return {"model_type": family, "text_config": _random_config(inner, seed)}
    return {"model_type": family, **make(draw)}


def _common(family: str, draw: random.Random) -> Config:
    kv_heads = draw.choice([1, 2, 3])
    heads = kv_heads * draw.choice([1, 2, 4])
    head_dim = draw.choice([8, 16])
    config = {
        "hidden_size": heads * head_dim,
        "intermediate_size": draw.choice([24, 40, 72]),
        "num_hidden_layers": draw.choice([1, 2, 5, 9]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": draw.choice([17, 64]),
        "max_position_embeddings": draw.choice([64, 256]),
        # transformers' padding tokens lie outside such small vocabularies
        "pad_token_id": 0,
    }
    return config | _sometimes(draw, _switches(family, draw, head_dim))


def _switches(family: str, draw: random.Random, head_dim: int) -> Config:
    """Return what a config may say besides; of a family that is not named, what all may say."""
    common = {"tie_word_embeddings": draw.random() < 0.5}
    biased = {"attention_bias": draw.random() < 0.7}
    windowed = {"sliding_window": draw.choice([4, 8, None])}
    wide = {"head_dim": draw.choice([head_dim * 2, head_dim])}
    sometimes_windowed = {
        "use_sliding_window": draw.random() < 0.6,
        "sliding_window": 8,
        "max_window_layers": draw.choice([1, 2, 4]),
    }
    eps = {"rms_norm_eps": draw.choice([1e-5, 1e-6])}
    return (
        common
        | {
            family: {},
            "gemma": wide | biased | eps,
            "gemma2": wide | biased | windowed | eps | {"query_pre_attn_scalar": 24},
            "gemma3_text": wide
            | biased
            | windowed
            | {"sliding_window_pattern": draw.choice([2, 3]), "query_pre_attn_scalar": 24},
            "granitemoe": biased | eps | {"num_local_experts": 3, "attention_multiplier": 0.25},
            "granite": biased | eps | {"mlp_bias": True, "attention_multiplier": 0.25},
            "llama": wide | biased | eps | {"mlp_bias": draw.random() < 0.5},
            "mistral": wide | windowed | eps,
            "olmo": biased,
            "olmo2": biased | eps,
            "persimmon": {"partial_rotary_factor": 0.5, "qk_layernorm": draw.random() < 0.7},
            "phi": {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-6},
            "phi3": windowed | eps | {"partial_rotary_factor": 0.5},
            "qwen2": sometimes_windowed | eps,
            "qwen3": wide | biased | sometimes_windowed | eps,
            "smollm3": biased | {"no_rope_layer_interval": draw.choice([2, 4])} | eps,
            "apertus": biased | eps | {"hidden_act": draw.choice(["xielu", "relu2"])},
            "arcee": biased | eps | {"mlp_bias": draw.random() < 0.5},
            "cohere": biased | {"layer_norm_eps": 1e-6, "logit_scale": 0.5},
            "cohere2": biased
            | windowed
            | {"layer_norm_eps": 1e-6, "sliding_window_pattern": draw.choice([2, 3])},
            "cwm": wide | eps | {"sliding_window": 8, "mlp_bias": draw.random() < 0.5},
            "ernie4_5": wide | eps | {"use_bias": draw.random() < 0.5},
            "exaone4": {"sliding_window": 8, "sliding_window_pattern": 2} | eps,
            "glm": wide | biased | eps,
            "glm4": wide | biased | eps,
            "helium": biased | eps | {"mlp_bias": draw.random() < 0.5},
            "hunyuan_v1_dense": wide | biased | eps,
            "lfm2": {
                "conv_bias": draw.random() < 0.5,
                "conv_L_cache": draw.choice([1, 3, 4]),
                "block_ff_dim": draw.choice([24, 40]),
                "block_auto_adjust_ff_dim": draw.random() < 0.5,
                "block_ffn_dim_multiplier": draw.choice([1.0, 1.3]),
                "block_multiple_of": 8,
                "norm_eps": 1e-6,
            },
            "ministral": wide | windowed | eps,
            "ministral3": wide | windowed | eps,
            "nemotron": wide | biased | {"mlp_bias": draw.random() < 0.5, "norm_eps": 1e-6},
            "olmo3": biased | windowed | eps,
            "gpt_oss": wide
            | windowed
            | eps
            | {"num_local_experts": draw.choice([4, 6]), "attention_bias": True},
            "mixtral": wide | eps | {"num_local_experts": 3, "sliding_window": None},
            "phimoe": biased | eps | {"num_local_experts": 3, "lm_head_bias": draw.random() < 0.5},
            "olmoe": biased | eps | {"num_experts": draw.choice([9, 12])},
            "qwen2_moe": eps
            | {
                "num_experts": draw.choice([4, 6]),
                "moe_intermediate_size": 16,
                "shared_expert_intermediate_size": 24,
                "qkv_bias": draw.random() < 0.5,
            },
            "qwen3_moe": biased
            | eps
            | {
                "num_local_experts": draw.choice([8, 11]),
                "moe_intermediate_size": 16,
                "decoder_sparse_step": draw.choice([1, 2]),
                "mlp_only_layers": [0],
            },
            "qwen3_5_text": wide
            | biased
            | eps
            | {
                "full_attention_interval": draw.choice([2, 4]),
                "linear_conv_kernel_dim": draw.choice([2, 4]),
            },
            "seed_oss": wide
            | biased
            | eps
            | {"attention_out_bias": draw.random() < 0.5, "mlp_bias": draw.random() < 0.5},
            "stablelm": {
                "use_qkv_bias": draw.random() < 0.5,
                "use_parallel_residual": draw.random() < 0.5,
                "layer_norm_eps": 1e-6,
            },
            "starcoder2": windowed | {"use_bias": draw.random() < 0.7, "norm_epsilon": 1e-6},
        }[family]
    )


def _sometimes(draw: random.Random, fields: Config) -> Config:
    return {name: value for name, value in fields.items() if draw.random() < 0.8}


def _granite4(draw: random.Random) -> Config:
    config = _common("granite", draw)
    layers, kinds = config["num_hidden_layers"], ["attention", "full_attention", "mamba"]
    types = [draw.choice([*kinds, "linear_attention"]) for _ in range(layers)]
    types[draw.randrange(layers)] = draw.choice(kinds[:2])
    groups = draw.choice([1, 2])
    return config | {
        "num_local_experts": draw.choice([0, 3]),
        "layer_types": types,
        "shared_intermediate_size": draw.choice([24, 40]),
        "position_embedding_type": draw.choice(["rope", None]),
        "mamba_n_heads": groups * draw.choice([1, 2]),
        "mamba_n_groups": groups,
        "mamba_d_state": draw.choice([4, 16]),
        "mamba_d_conv": draw.choice([2, 4]),
        "mamba_conv_bias": draw.random() < 0.5,
        "mamba_proj_bias": draw.random() < 0.5,
    }


def _falcon_h1(draw: random.Random) -> Config:
    config = _common("llama", draw)
    groups = draw.choice([1, 2])
    heads = groups * draw.choice([1, 2])
    return config | {
        "mamba_d_ssm": draw.choice([heads * 8, heads * 12]),
        "mamba_n_heads": heads,
        "mamba_n_groups": groups,
        "mamba_d_state": draw.choice([4, 16]),
        "mamba_conv_bias": draw.random() < 0.5,
        "mamba_proj_bias": draw.random() < 0.5,
        "mamba_rms_norm": draw.random() < 0.5,
        "projectors_bias": draw.random() < 0.5,
        "rms_norm_eps": 1e-6,
    }


def _nemotron_h(draw: random.Random) -> Config:
    config = _common("llama", draw)
    kinds = ["linear_attention", "full_attention", "mlp"]
    layers = [draw.choice(kinds) for _ in range(config["num_hidden_layers"])]
    layers[draw.randrange(len(layers))] = "full_attention"
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-"}
    told = draw.choice(
        [
            {"layers_block_type": layers},
            {"hybrid_override_pattern": "".join(letters[x] for x in layers)},
        ]
    )
    groups = draw.choice([1, 2])
    heads = groups * draw.choice([1, 3])
    kept = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    others = ("vocab_size", "max_position_embeddings", "pad_token_id")
    return (
        {name: config[name] for name in (*kept, *others)}
        | told
        | {
            "num_hidden_layers": len(layers),
            "head_dim": draw.choice([8, 16]),
            "mamba_num_heads": heads,
            "mamba_head_dim": draw.choice([4, 6]),
            "n_groups": groups,
            "ssm_state_size": draw.choice([4, 16]),
            "conv_kernel": draw.choice([2, 4]),
            "use_conv_bias": draw.random() < 0.5,
            "use_bias": draw.random() < 0.5,
            "mlp_bias": draw.random() < 0.5,
            "layer_norm_epsilon": 1e-6,
        }
    )


def _helium(draw: random.Random) -> Config:
    config = _common("helium", draw)
    return config | {"head_dim": config["hidden_size"] // config["num_attention_heads"]}


def _gemma4(draw: random.Random) -> Config:
    config = _common("gemma3_text", draw)
    layers = config["num_hidden_layers"]
    types = [draw.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    types[0], types[-1] = "sliding_attention", "full_attention"
    makers = {kind: types.index(kind) for kind in types}
    own = {
        "layer_types": types,
        "num_kv_shared_layers": draw.randrange(layers - max(makers.values())),
        "use_double_wide_mlp": draw.random() < 0.6,
        "hidden_size_per_layer_input": draw.choice([0, 6, 12]),
        "vocab_size_per_layer_input": draw.choice([64, 80]),
        "attention_k_eq_v": draw.random() < 0.4,
        "num_global_key_value_heads": draw.choice([1, None]),
        "global_head_dim": draw.choice([16, 32]),
        "sliding_window": draw.choice([4, 8]),
    }
    if draw.random() < 0.5:
        experts = {"num_experts": draw.choice([3, 5]), "top_k_experts": 2}
        own |= {"enable_moe_block": True, "moe_intermediate_size": 12, **experts}
    config = {name: x for name, x in config.items() if name != "sliding_window_pattern"}
    config.pop("query_pre_attn_scalar", None)
    return config | own


def _gemma4_unified(draw: random.Random) -> Config:
    mixture = {"enable_moe_block", "moe_intermediate_size", "num_experts", "top_k_experts"}
    plain = {name: x for name, x in _gemma4(draw).items() if name not in mixture}
    return plain | {"attention_k_eq_v": True}


def _latents(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 4])
    sizes = {
        "hidden_size": 8 * heads,
        "intermediate_size": draw.choice([24, 40]),
        "moe_intermediate_size": draw.choice([12, 16]),
        "num_hidden_layers": draw.choice([1, 2, 5]),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "qk_nope_head_dim": draw.choice([128, 192]),
        "v_head_dim": draw.choice([6, 100]),
        "vocab_size": draw.choice([17, 64]),
        "max_position_embeddings": draw.choice([64, 256]),
        "pad_token_id": 0,
        "n_routed_experts": draw.choice([8, 16]),
        "num_experts_per_tok": 2,
    }
    switches = {
        "tie_word_embeddings": draw.random() < 0.5,
        "attention_bias": draw.random() < 0.5,
        "rms_norm_eps": draw.choice([1e-5, 1e-6]),
        "kv_lora_rank": draw.choice([12, 16]),
        "q_lora_rank": draw.choice([None, 10]),
        "qk_rope_head_dim": 4,
        "n_shared_experts": draw.choice([1, 2]),
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 1.0,
            "mscale_all_dim": draw.choice([0.7, 1.0]), "original_max_position_embeddings": 32,
        },
    }  # fmt: skip
    return sizes | _sometimes(draw, switches)


def _deepseek_v2(draw: random.Random) -> Config:
    grouped = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
    return (
        _latents(draw) | draw.choice([{}, grouped]) | {"first_k_dense_replace": draw.choice([0, 1])}
    )


def _deepseek_v3(draw: random.Random) -> Config:
    own = {"first_k_dense_replace": draw.choice([0, 1]), "n_group": draw.choice([1, 4])}
    return _latents(draw) | own | {"topk_group": 1} | _sometimes(draw, {"norm_topk_prob": False})


def _glm4_moe_lite(draw: random.Random) -> Config:
    return _latents(draw)


def _lfm2(draw: random.Random) -> Config:
    config = _common("lfm2", draw)
    layers = config["num_hidden_layers"]
    attending = sorted({draw.randrange(layers) for _ in range(3)})
    types = ["full_attention" if layer in attending else "conv" for layer in range(layers)]
    return config | draw.choice([{"layer_types": types}, {"full_attn_idxs": attending}])


def _qwen3_5(draw: random.Random) -> Config:
    config = _common("qwen3_5_text", draw)
    heads = draw.choice([1, 2, 3])
    sizes = {
        "num_hidden_layers": draw.choice([4, 5, 8]),
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads * draw.choice([1, 2]),
        "linear_key_head_dim": draw.choice([4, 8]),
        "linear_value_head_dim": draw.choice([4, 6]),
    }
    return config | sizes


def _qwen3_5_moe(draw: random.Random) -> Config:
    sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}
    return _qwen3_5(draw) | sizes | {"num_experts": draw.choice([8, 9])}


def _with_head_size(family: str) -> Callable[[random.Random], Config]:
    """Return configs that say how large a head is, without which transformers makes no model."""

    def make(draw: random.Random) -> Config:
        config = _common(family, draw)
        return {"head_dim": config["hidden_size"] // config["num_attention_heads"]} | config

    return make


def _gpt2(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5])
    config = {
        "n_embd": heads * draw.choice([4, 8]),
        "n_head": heads,
        "n_layer": draw.choice([1, 3]),
        "vocab_size": draw.choice([17, 64]),
        "n_positions": draw.choice([16, 32]),
    }
    switches = {
        "n_inner": draw.choice([24, 40]),
        "tie_word_embeddings": draw.random() < 0.5,
        "scale_attn_by_inverse_layer_idx": draw.random() < 0.5,
        "scale_attn_weights": draw.random() < 0.5,
        "layer_norm_epsilon": 1e-6,
    }
    return config | _sometimes(draw, switches)


def _gpt_bigcode(draw: random.Random) -> Config:
    config = _gpt2(draw)
    config.pop("scale_attn_by_inverse_layer_idx", None)
    return config | {"multi_query": draw.random() < 0.5}


def _gptj(draw: random.Random) -> Config:
    config = _gpt_bigcode(draw)
    config.pop("multi_query")
    return config | {"rotary_dim": 4}


def _gpt_neo(draw: random.Random) -> Config:
    groups = draw.choice([[[["global", "local"], 2]], [[["local"], 1], [["global"], 2]]])
    heads = draw.choice([1, 2, 5])
    return {
        "hidden_size": 8 * heads,
        "num_heads": heads,
        "intermediate_size": draw.choice([None, 24]),
        "num_layers": sum(len(kinds) * times for kinds, times in groups),
        "attention_types": groups,
        "vocab_size": draw.choice([17, 64]),
        "max_position_embeddings": 32,
        "tie_word_embeddings": draw.random() < 0.5,
    }


def _bloom(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5, 6])
    sizes = {"n_layer": draw.choice([1, 3]), "n_head": heads, "vocab_size": draw.choice([17, 64])}
    width = draw.choice(["hidden_size", "n_embed"])
    return sizes | {width: 8 * heads, "tie_word_embeddings": draw.random() < 0.5}


def _mpt(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5, 6])
    sizes = {"n_layers": draw.choice([1, 3]), "n_heads": heads, "d_model": 8 * heads}
    return sizes | {"vocab_size": 17, "tie_word_embeddings": draw.random() < 0.5}


def _opt(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5])
    return {
        "hidden_size": 8 * heads,
        "num_attention_heads": heads,
        "num_hidden_layers": draw.choice([1, 3]),
        "ffn_dim": 24,
        "vocab_size": draw.choice([17, 64]),
        "max_position_embeddings": 32,
        "enable_bias": draw.random() < 0.7,
        "tie_word_embeddings": draw.random() < 0.5,
    }


def _falcon(draw: random.Random) -> Config:
    heads, new = draw.choice([2, 4]), draw.random() < 0.5
    return {
        "hidden_size": 8 * heads,
        "num_attention_heads": heads,
        "num_kv_heads": draw.choice([None, 2]) if new else None,
        "num_hidden_layers": draw.choice([1, 3]),
        "ffn_hidden_size": draw.choice([None, 24]),
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": draw.choice([None, 1, 2]) if new else None,
        "multi_query": draw.random() < 0.5,
        "parallel_attn": new or draw.random() < 0.5,
        "bias": draw.random() < 0.5,
        "vocab_size": draw.choice([17, 64]),
    }


def _gpt_neox(draw: random.Random) -> Config:
    heads = draw.choice([1, 2, 5])
    config = {
        "hidden_size": heads * 16,
        "num_attention_heads": heads,
        "intermediate_size": draw.choice([24, 40]),
        "num_hidden_layers": draw.choice([1, 3]),
        "vocab_size": draw.choice([17, 64]),
    }
    switches = {
        "attention_bias": draw.random() < 0.5,
        "tie_word_embeddings": draw.random() < 0.5,
        "use_parallel_residual": draw.random() < 0.5,
        "rotary_pct": draw.choice([0.5, 1.0]),
        "layer_norm_eps": 1e-6,
    }
    return config | _sometimes(draw, switches)
