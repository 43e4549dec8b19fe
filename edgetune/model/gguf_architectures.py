"""The architectures of GGUF files, and the ``config.json`` that a file was made with.

llama.cpp names architectures as transformers names model types, nearly; Ollama's own files have a few
names of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from edgetune.errors import ModelError
from edgetune.escapes import one_line
from edgetune.model import gguf_config, gguf_hybrids, gguf_layers
from edgetune.model.gguf_names import EXPERTS, FUSED_EXPERTS, HEAD
from edgetune.model.gguf_source import Config, Source, sizes
from edgetune.tensors.gguf.metadata import Metadata
from edgetune.tensors.gguf.reader import GgufHeader

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Architecture:
    """How files of one architecture are read."""

    model_type: str
    transformers: str
    """Name of the class in transformers."""
    config: Callable[[Source], Config]
    pairs_channels: bool = False
    """Whether channels that rotate together are neighbours: rows of queries and keys moved."""


_OLMO3: Final = Architecture("olmo3", "Olmo3ForCausalLM", gguf_layers.olmo3)
_DEEPSEEK_V3: Final = Architecture("deepseek_v3", "DeepseekV3ForCausalLM", gguf_layers.deepseek_v3)
_GRANITE_SHARED: Final = Architecture(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    gguf_hybrids.granite_shared,
    pairs_channels=True,
)
_NEMOTRON_H: Final = Architecture("nemotron_h", "NemotronHForCausalLM", gguf_hybrids.nemotron_h)
_GPT_OSS: Final = Architecture("gpt_oss", "GptOssForCausalLM", gguf_hybrids.gpt_oss)

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "apertus": Architecture("apertus", "ApertusForCausalLM", gguf_config.apertus),
    "arcee": Architecture("arcee", "ArceeForCausalLM", gguf_config.llama, pairs_channels=True),
    "bloom": Architecture("bloom", "BloomForCausalLM", gguf_config.bloom),
    "cohere2": Architecture("cohere2", "Cohere2ForCausalLM", gguf_config.cohere2),
    "command-r": Architecture("cohere", "CohereForCausalLM", gguf_config.cohere),
    "deepseek2": Architecture("deepseek_v2", "DeepseekV2ForCausalLM", gguf_layers.deepseek_v2),
    "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM", sizes),
    "falcon-h1": Architecture("falcon_h1", "FalconH1ForCausalLM", gguf_hybrids.falcon_h1),
    "gemma": Architecture("gemma", "GemmaForCausalLM", gguf_config.gemma),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", gguf_config.gemma2),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", gguf_config.gemma3),
    "gemma3n": Architecture("gemma3n_text", "Gemma3nForCausalLM", gguf_layers.gemma3n),
    "exaone4": Architecture("exaone4", "Exaone4ForCausalLM", gguf_layers.exaone4),
    "gemma4": Architecture("gemma4_text", "Gemma4ForCausalLM", gguf_layers.gemma4),
    "glm4moelite": _DEEPSEEK_V3,  # as Ollama's own files call GLM-4.7-Flash
    "glm4": Architecture("glm4", "Glm4ForCausalLM", gguf_config.glm4),
    "gpt-oss": _GPT_OSS,
    "gptoss": _GPT_OSS,  # as Ollama's own files call it
    "gpt2": Architecture("gpt2", "GPT2LMHeadModel", gguf_config.gpt2),
    "gptneox": Architecture("gpt_neox", "GPTNeoXForCausalLM", gguf_config.gptneox),
    "granite": Architecture(
        "granite", "GraniteForCausalLM", gguf_config.granite, pairs_channels=True
    ),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        gguf_hybrids.granitehybrid,
        pairs_channels=True,
    ),
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", gguf_config.qwen3
    ),
    "lfm2": Architecture("lfm2", "Lfm2ForCausalLM", gguf_layers.lfm2),
    "llama": Architecture("llama", "LlamaForCausalLM", gguf_config.llama, pairs_channels=True),
    "mpt": Architecture("mpt", "MptForCausalLM", gguf_config.mpt),
    "nemotron": Architecture("nemotron", "NemotronForCausalLM", gguf_config.nemotron),
    "nemotron_h": _NEMOTRON_H,
    "nemotron_h_moe": _NEMOTRON_H,
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", sizes),
    "olmo3": _OLMO3,  # as Ollama's own files call it
    "phi2": Architecture("phi", "PhiForCausalLM", gguf_config.phi),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", gguf_config.phi3),
    "phimoe": Architecture("phimoe", "PhimoeForCausalLM", gguf_layers.phimoe),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", sizes),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", gguf_config.qwen3),
    "qwen35": Architecture("qwen3_5_text", "Qwen3_5ForCausalLM", gguf_layers.qwen3_5),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", gguf_hybrids.qwen3_5_moe
    ),
    "granitemoe": Architecture(
        "granitemoe", "GraniteMoeForCausalLM", gguf_config.granitemoe, pairs_channels=True
    ),
    "olmoe": Architecture("olmoe", "OlmoeForCausalLM", gguf_config.olmoe),
    "qwen2moe": Architecture("qwen2_moe", "Qwen2MoeForCausalLM", gguf_config.qwen2moe),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", gguf_config.qwen3moe),
    "smollm3": Architecture(
        "smollm3", "SmolLM3ForCausalLM", gguf_config.llama, pairs_channels=True
    ),
    "stablelm": Architecture("stablelm", "StableLmForCausalLM", gguf_config.stablelm),
    "starcoder": Architecture("gpt_bigcode", "GPTBigCodeForCausalLM", gguf_config.gpt_bigcode),
    "starcoder2": Architecture("starcoder2", "Starcoder2ForCausalLM", gguf_config.starcoder2),
}

MIXTURES: Final[Mapping[str, Architecture]] = {
    "llama": Architecture(
        "mixtral", "MixtralForCausalLM", gguf_config.mixtral, pairs_channels=True
    ),
    **{
        name: ARCHITECTURES[name]
        for name in (
            "deepseek2",
            "gemma4",
            "glm4moelite",
            "gpt-oss",
            "gptoss",
            "granitehybrid",
            "granitemoe",
            "nemotron_h_moe",
            "olmoe",
            "phimoe",
            "qwen2moe",
            "qwen35moe",
            "qwen3moe",
        )
    },
}
"""Those of files with experts."""


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
    found, mixture = _variant(source), source.whole("expert_count", 0) > 0
    if found is None or (mixture and not any(map(_of_all_experts, header.tensors))):
        raise ModelError(f"{header.file} holds a mixture of experts, which is not supported yet.")
    return found


def _of_all_experts(name: str) -> bool:
    """Return whether a tensor has a matrix of each expert of a block."""
    return name.endswith((f".{EXPERTS['up']}.weight", f".{FUSED_EXPERTS}.weight"))


def _variant(source: Source) -> Architecture | None:
    """Return what a file holds of the types that llama.cpp calls by one name; None if unknown."""
    name = source.architecture
    if not source.whole("expert_count", 0):
        windowed = name == "olmo2" and source.has("attention.sliding_window")
        return _OLMO3 if windowed else ARCHITECTURES[name]
    if name == "deepseek2" and gguf_layers.has_sigmoids(source):
        return _DEEPSEEK_V3
    if name == "granitemoe" and gguf_hybrids.has_shared(source):
        return _GRANITE_SHARED
    return MIXTURES.get(name)


def _token_ids(metadata: Metadata) -> Config:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    keys = {name: f"tokenizer.ggml.{short}_token_id" for name, short in names.items()}
    return {name: metadata.whole(key) for name, key in keys.items() if key in metadata}
