"""The ``config.json`` that a GGUF file was made with, as far as its metadata tell.

llama.cpp names architectures as transformers names model types, nearly; it keeps what its own
code needs and leaves out what follows from the architecture, which is put back here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from edgetune.errors import ModelError
from edgetune.escapes import one_line
from edgetune.model import gguf_layers
from edgetune.model.gguf_names import EXPERTS, FUSED_EXPERTS, HEAD
from edgetune.model.gguf_rotary import rotated_share
from edgetune.model.gguf_source import Config, Source, sizes
from edgetune.tensors.gguf.metadata import Metadata
from edgetune.tensors.gguf.reader import GgufHeader

_SHOWN: Final = 5


def config_of(header: GgufHeader) -> Config:
    """Return the config of a file's model.

    Raises:
        ModelError: if its architecture is not supported, or metadata are missing or wrong.
    """
    source = Source(header)
    architecture = architecture_of(header)
    config = architecture.config(source) | {
        "vocab_size": source.vocabulary,
        "tie_word_embeddings": not source.has_tensor(HEAD),
        "architectures": [architecture.transformers],
    }
    return {"model_type": architecture.model_type} | config | _token_ids(source.metadata)


def architecture_of(header: GgufHeader) -> Architecture:
    """Return how a file is read: what llama.cpp calls Llama can be a Mixtral.

    Raises:
        ModelError: if its architecture is not supported.
    """
    source = Source(header)
    if source.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{header.file} holds a model of the architecture {one_line(source.architecture)}, "
            f"which is not supported. Supported: {', '.join(list(ARCHITECTURES)[:_SHOWN])} and "
            f"{len(ARCHITECTURES) - _SHOWN} others (docs/models.md)."
        )
    found, last = _variant(source), source.layers - 1
    known = (EXPERTS["gate"], FUSED_EXPERTS) if source.whole("expert_count", 0) else ()
    there = [name for name in known if source.has_tensor(f"blk.{last}.{name}.weight")]
    if found is None or (known and not there):
        raise ModelError(f"{header.file} holds a mixture of experts, which is not supported yet.")
    return found


def _variant(source: Source) -> Architecture | None:
    """Return what a file holds of the types that llama.cpp calls by one name; None if unknown."""
    name = source.architecture
    if not source.whole("expert_count", 0):
        windowed = name == "olmo2" and source.has("attention.sliding_window")
        return _OLMO3 if windowed else ARCHITECTURES[name]
    if name == "deepseek2" and gguf_layers.has_sigmoids(source):
        return _DEEPSEEK_V3
    return MIXTURES.get(name)


def _token_ids(metadata: Metadata) -> Config:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    keys = {name: f"tokenizer.ggml.{short}_token_id" for name, short in names.items()}
    return {name: metadata.whole(key) for name, key in keys.items() if key in metadata}


def _llama(source: Source) -> Config:
    config = sizes(source)
    if "head_dim" not in config and source.has("rope.dimension_count"):
        config["head_dim"] = source.whole("rope.dimension_count")
    return config | {
        "attention_bias": source.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": source.has_tensor("blk.0.ffn_up.bias"),
    }


def _granite(source: Source) -> Config:
    return _llama(source) | {
        "attention_multiplier": source.number("attention.scale", 1.0),
        "embedding_multiplier": source.number("embedding_scale", 1.0),
        "residual_multiplier": source.number("residual_scale", 1.0),
        "logits_scaling": source.number("logit_scale", 1.0),
    }


def _qwen3(source: Source) -> Config:
    return sizes(source) | {"attention_bias": source.has_tensor("blk.0.attn_q.bias")}


def _qwen3moe(source: Source) -> Config:
    return _qwen3(source) | {
        "num_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "moe_intermediate_size": source.whole("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _mixtral(source: Source) -> Config:
    config = {k: v for k, v in _llama(source).items() if k not in {"attention_bias", "mlp_bias"}}
    return config | {
        "num_local_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
    }


def _qwen2moe(source: Source) -> Config:
    return sizes(source) | {
        "num_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "moe_intermediate_size": source.whole("expert_feed_forward_length"),
        "shared_expert_intermediate_size": source.whole(
            "expert_shared_feed_forward_length", source.whole("feed_forward_length")
        ),
        "norm_topk_prob": False,
        "qkv_bias": source.has_tensor("blk.0.attn_q.bias"),
    }


def _olmoe(source: Source) -> Config:
    return sizes(source) | {
        "num_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
        "norm_topk_prob": False,
    }


def _granitemoe(source: Source) -> Config:
    return _granite(source) | {
        "num_local_experts": source.whole("expert_count"),
        "num_experts_per_tok": source.whole("expert_used_count"),
    }


def _cohere(source: Source) -> Config:
    config = sizes(source, norm="layer_norm_eps", layer_norm=True)
    return config | {"logit_scale": source.number("logit_scale")}


def _cohere2(source: Source) -> Config:
    window = source.whole("attention.sliding_window", 0)
    types = gguf_layers.window_types(source, every=4)
    return _cohere(source) | {"sliding_window": window or None, "layer_types": types}


def _nemotron(source: Source) -> Config:
    config = sizes(source, norm="norm_eps", layer_norm=True)
    return config | {
        "attention_bias": source.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": source.has_tensor("blk.0.ffn_up.bias"),
        "partial_rotary_factor": rotated_share(source.header, source.architecture, config),
    }


def _gemma(source: Source) -> Config:
    return sizes(source) | {"hidden_act": "gelu_pytorch_tanh"}


def _gemma2(source: Source) -> Config:
    config = sizes(source)
    return config | {
        "query_pre_attn_scalar": _query_scalar(source, config, largest=46),
        "sliding_window": source.whole("attention.sliding_window", 4096),
        "layer_types": gguf_layers.window_types(source, every=2),
        "attn_logit_softcapping": source.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": source.number("final_logit_softcapping", 30.0),
    }


def _gemma3(source: Source) -> Config:
    config = sizes(source)
    rotary = config.pop("rope_parameters", None)
    if rotary is not None:
        config["rope_scaling"] = rotary
    capped = source.has("final_logit_softcapping")
    window, types = source.whole("attention.sliding_window", 0), [gguf_layers.FULL] * source.layers
    if window:
        types = gguf_layers.window_types(source, every=6)
    return config | {
        "rope_theta": source.number("rope.freq_base", 1e6),
        "rope_local_base_freq": source.number("rope.freq_base_swa", 10_000.0),
        "query_pre_attn_scalar": _query_scalar(source, config, largest=62),
        "sliding_window": window or None,
        "layer_types": types,
        "final_logit_softcapping": source.number("final_logit_softcapping") if capped else None,
    }


def _query_scalar(source: Source, config: Config, *, largest: int) -> float:
    """Return what queries are divided by the root of: the head's size, but in the largest model.

    That one, known by its number of layers, uses the hidden size over the number of heads.
    """
    if source.has("attention.scale"):
        return source.number("attention.scale") ** -2
    if config["num_hidden_layers"] == largest:
        return float(config["hidden_size"] // config["num_attention_heads"])
    return float(config.get("head_dim", 256))


def _phi3(source: Source) -> Config:
    config = sizes(source)
    window = source.whole("attention.sliding_window", 0)
    original = source.whole("rope.scaling.original_context_length", 0)
    return config | {
        "sliding_window": window or None,
        "original_max_position_embeddings": original or config["max_position_embeddings"],
        "partial_rotary_factor": rotated_share(source.header, source.architecture, config),
    }


def _gpt2(source: Source) -> Config:
    return {
        "n_embd": source.whole("embedding_length"),
        "n_inner": source.whole("feed_forward_length"),
        "n_layer": source.whole("block_count"),
        "n_head": source.whole("attention.head_count"),
        "n_positions": source.whole("context_length"),
        "layer_norm_epsilon": source.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _gptneox(source: Source) -> Config:
    config = sizes(source, norm="layer_norm_eps", layer_norm=True)
    parallel = source.metadata.flag(f"{source.architecture}.use_parallel_residual", True)
    return config | {
        "rotary_emb_base": config["rope_theta"],
        "rotary_pct": rotated_share(source.header, source.architecture, config),
        "use_parallel_residual": parallel,
        "attention_bias": source.has_tensor("blk.0.attn_qkv.bias"),
        "hidden_act": "gelu",
    }


def _starcoder2(source: Source) -> Config:
    return sizes(source, norm="norm_epsilon", layer_norm=True) | {
        "use_bias": source.has_tensor("blk.0.attn_q.bias")
    }


def _stablelm(source: Source) -> Config:
    config = sizes(source, norm="layer_norm_eps", layer_norm=True)
    parallel = source.metadata.flag(f"{source.architecture}.use_parallel_residual", False)
    return config | {
        "use_qkv_bias": source.has_tensor("blk.0.attn_q.bias"),
        "use_parallel_residual": parallel,
        "qk_layernorm": source.has_tensor("blk.0.attn_q_norm.weight"),
        "partial_rotary_factor": rotated_share(source.header, source.architecture, config),
    }


def _glm4(source: Source) -> Config:
    config = sizes(source)
    return config | {
        "attention_bias": source.has_tensor("blk.0.attn_q.bias"),
        "partial_rotary_factor": rotated_share(source.header, source.architecture, config),
    }


def _phi(source: Source) -> Config:
    config = sizes(source, norm="layer_norm_eps", layer_norm=True)
    share = rotated_share(source.header, source.architecture, config)
    return config | {"partial_rotary_factor": share}


def _gpt_bigcode(source: Source) -> Config:
    heads = source.whole("attention.head_count")
    return _gpt2(source) | {
        "activation_function": "gelu_pytorch_tanh",
        "multi_query": source.whole("attention.head_count_kv", heads) == 1,
    }


def _bloom(source: Source) -> Config:
    return {
        "hidden_size": source.whole("embedding_length"),
        "n_layer": source.whole("block_count"),
        "n_head": source.whole("attention.head_count"),
        "seq_length": source.whole("context_length"),
        "layer_norm_epsilon": source.number("attention.layer_norm_epsilon"),
    }


def _mpt(source: Source) -> Config:
    clamp = "attention.clamp_kqv"
    return {
        "d_model": source.whole("embedding_length"),
        "n_layers": source.whole("block_count"),
        "n_heads": source.whole("attention.head_count"),
        "max_seq_len": source.whole("context_length"),
        "layer_norm_epsilon": source.number("attention.layer_norm_epsilon"),
        "attn_config": {
            "alibi_bias_max": int(source.number("attention.max_alibi_bias", 8.0)),
            "clip_qkv": source.number(clamp) if source.has(clamp) else None,
        },
    }


@dataclass(frozen=True, slots=True)
class Architecture:
    """How files of one architecture are read."""

    model_type: str
    transformers: str
    """Name of the class in transformers."""
    config: Callable[[Source], Config]
    pairs_channels: bool = False
    """Whether channels that rotate together are neighbours: rows of queries and keys moved."""


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "apertus": Architecture("apertus", "ApertusForCausalLM", _qwen3),
    "arcee": Architecture("arcee", "ArceeForCausalLM", _llama, pairs_channels=True),
    "bloom": Architecture("bloom", "BloomForCausalLM", _bloom),
    "cohere2": Architecture("cohere2", "Cohere2ForCausalLM", _cohere2),
    "command-r": Architecture("cohere", "CohereForCausalLM", _cohere),
    "deepseek2": Architecture("deepseek_v2", "DeepseekV2ForCausalLM", gguf_layers.deepseek_v2),
    "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM", sizes),
    "gemma": Architecture("gemma", "GemmaForCausalLM", _gemma),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _gemma2),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", _gemma3),
    "exaone4": Architecture("exaone4", "Exaone4ForCausalLM", gguf_layers.exaone4),
    "gemma4": Architecture("gemma4_text", "Gemma4ForCausalLM", gguf_layers.gemma4),
    "glm4": Architecture("glm4", "Glm4ForCausalLM", _glm4),
    "gpt2": Architecture("gpt2", "GPT2LMHeadModel", _gpt2),
    "gptneox": Architecture("gpt_neox", "GPTNeoXForCausalLM", _gptneox),
    "granite": Architecture("granite", "GraniteForCausalLM", _granite, pairs_channels=True),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", _qwen3),
    "lfm2": Architecture("lfm2", "Lfm2ForCausalLM", gguf_layers.lfm2),
    "llama": Architecture("llama", "LlamaForCausalLM", _llama, pairs_channels=True),
    "mpt": Architecture("mpt", "MptForCausalLM", _mpt),
    "nemotron": Architecture("nemotron", "NemotronForCausalLM", _nemotron),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", sizes),
    "phi2": Architecture("phi", "PhiForCausalLM", _phi),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _phi3),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", sizes),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _qwen3),
    "qwen35": Architecture("qwen3_5_text", "Qwen3_5ForCausalLM", gguf_layers.qwen3_5),
    "granitemoe": Architecture(
        "granitemoe", "GraniteMoeForCausalLM", _granitemoe, pairs_channels=True
    ),
    "olmoe": Architecture("olmoe", "OlmoeForCausalLM", _olmoe),
    "qwen2moe": Architecture("qwen2_moe", "Qwen2MoeForCausalLM", _qwen2moe),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3moe),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", _llama, pairs_channels=True),
    "stablelm": Architecture("stablelm", "StableLmForCausalLM", _stablelm),
    "starcoder": Architecture("gpt_bigcode", "GPTBigCodeForCausalLM", _gpt_bigcode),
    "starcoder2": Architecture("starcoder2", "Starcoder2ForCausalLM", _starcoder2),
}

MIXTURES: Final[Mapping[str, Architecture]] = {
    "llama": Architecture("mixtral", "MixtralForCausalLM", _mixtral, pairs_channels=True),
    **{
        name: ARCHITECTURES[name]
        for name in ("deepseek2", "gemma4", "granitemoe", "olmoe", "qwen2moe", "qwen3moe")
    },
}
"""Those of files with experts."""

_OLMO3: Final = Architecture("olmo3", "Olmo3ForCausalLM", gguf_layers.olmo3)
_DEEPSEEK_V3: Final = Architecture("deepseek_v3", "DeepseekV3ForCausalLM", gguf_layers.deepseek_v3)
