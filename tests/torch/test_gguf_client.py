"""GGUF files in llama.cpp itself: what it computes is what was trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import random_adapter
from gguf_models import absorbed
from models import FAMILIES, make_model
from numpy.typing import NDArray
from opened import open_decoder
from published_folders import make_mxfp4

import edgetune_profiles
from edgetune.errors import UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.gguf.client import Client
from edgetune.exporters.gguf.mixture import MIXTURES
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.updates import Merge
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE

TINY = Path(edgetune_profiles.__file__).parent / "tiny"
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 192,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
}
GPT2 = {"vocab_size": 1024, "n_embd": 128, "n_positions": 512, "initializer_range": 0.08}
BLOOM = {"vocab_size": 1024, "hidden_size": 128, "n_head": 4, "initializer_range": 0.08}
LENGTHS = (32, 256)


def rope(kind: str, **settings: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=128)
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)  # fmt: skip
LONGROPE = rope("longrope", factor=8.0, original_max_position_embeddings=16,
                short_factor=[1 + i / 16 for i in range(16)],
                long_factor=[2.0 + i for i in range(16)])  # fmt: skip
GEMMA3 = {"rope_parameters": {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}}  # fmt: skip
OLMO3 = {"rope_parameters": {
    "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0,
                       "original_max_position_embeddings": 128},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}  # fmt: skip
GEMMA3N = {
    "intermediate_size": 2048, "hidden_size_per_layer_input": 256, "laurel_rank": 64,
    "vocab_size_per_layer_input": 1000, "sliding_window": 64, "final_logit_softcapping": 30.0,
    "num_hidden_layers": 6, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.95] * 6,
}  # fmt: skip
SHARED = {
    "num_hidden_layers": 22, "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12,
    "layer_types": ["sliding_attention"] * 19 + ["full_attention"] * 2 + ["sliding_attention"],
}  # fmt: skip
"""Two layers read the keys of others: one of those that see a window, one that sees all."""
GEMMA4 = {
    "vocab_size_per_layer_input": 1100, "global_head_dim": 64, "sliding_window": 64,
    "hidden_size_per_layer_input": 32,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2
    + ["full_attention"],
}  # fmt: skip
LATENTS = {
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "q_lora_rank": 64, "moe_intermediate_size": 96, "n_group": 1, "topk_group": 1,
}  # fmt: skip
MAGNITUDES = {"mscale": 0.7, "mscale_all_dim": 0.7}
LITE = {"topk_method": "greedy", "q_lora_rank": None, "num_hidden_layers": 27}
WINDOW = {"sliding_window": 64, "num_hidden_layers": 7}
QWEN35 = {
    "layer_types": ["linear_attention", "full_attention"] * 2, "num_hidden_layers": 4,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32}  # fmt: skip
NO_WINDOW = {"sliding_window": None}
GRANITE4 = {
    "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 8, "mamba_d_state": 32,
    "shared_intermediate_size": 192, "logits_scaling": 1.5,
}  # fmt: skip
FALCON_H1 = {
    "mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 32,
    "lm_head_multiplier": 0.75,
}  # fmt: skip
NEMOTRON_H = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "ssm_state_size": 32,
    "time_step_min": 1e-3,
}
GPT_OSS = {
    "sliding_window": 64, "swiglu_limit": 7.0, "num_hidden_layers": 2, "intermediate_size": 96,
    "rope_parameters": {  # with whole bounds, 0 and 4
        "rope_type": "yarn", "rope_theta": 2.0**20, "factor": 4.0, "truncate": False,
        "original_max_position_embeddings": 201},
}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3": ("llama", LLAMA3),
    "llama, linear": ("llama", rope("linear", factor=4.0)),
    "llama, yarn": ("llama", YARN),
    "mistral": ("mistral", NO_WINDOW),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn": ("qwen2", YARN),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", WINDOW | {"query_pre_attn_scalar": 144}),
    "gemma3": ("gemma3_text", WINDOW),
    "gemma3, capped": ("gemma3_text", WINDOW | GEMMA3 | {"final_logit_softcapping": 20.0}),
    "gemma3n": ("gemma3n_text", GEMMA3N),
    "gemma3n, shared": ("gemma3n_text", GEMMA3N | SHARED),
    "gemma3n, stretched, unscaled, untied": (
        "gemma3n_text",
        GEMMA3N | GEMMA3 | {"altup_correct_scale": False, "tie_word_embeddings": False},
    ),
    "gemma4": ("gemma4_text", GEMMA4),
    "gemma4, untied, not shared": (
        "gemma4_text",
        GEMMA4
        | {"tie_word_embeddings": False, "num_kv_shared_layers": 0}
        | {"vocab_size_per_layer_input": 1000},
    ),
    "gemma4, 12B": ("gemma4_unified_text", {"sliding_window": 64, "global_head_dim": 64}),
    "gemma4, mixture": (
        "gemma4_moe",
        {"sliding_window": 64, "global_head_dim": 64, "moe_intermediate_size": 96},
    ),
    "deepseek_v2": (
        "deepseek_v2",
        LATENTS
        | {"topk_method": "greedy"}
        | rope("yarn", factor=4.0, original_max_position_embeddings=128, **MAGNITUDES),
    ),
    "deepseek_v2, lite": ("deepseek_v2", LATENTS | LITE | rope("default")),
    "deepseek_v3": ("deepseek_v3", LATENTS),
    "glm4_moe_lite": ("glm4_moe_lite", LATENTS | {"norm_topk_prob": True}),
    "lfm2": ("lfm2", {"num_hidden_layers": 3}),
    "qwen3.5": ("qwen3_5_text", QWEN35),
    "phi3": ("phi3", NO_WINDOW),
    "phi3, partial": ("phi3", NO_WINDOW | rope("default", partial_rotary_factor=0.5)),
    "phi3, longrope": ("phi3", NO_WINDOW | LONGROPE),
    "gpt2": ("gpt2", GPT2),
    "gpt2, scaled": ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("gpt_neox", rope("default", partial_rotary_factor=0.5) | {"rotary_pct": 0.5}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", WINDOW | {"num_hidden_layers": 4}),
    "apertus": ("apertus", LLAMA3),
    "arcee": ("arcee", {}),
    "bloom": ("bloom", BLOOM),
    "cohere": ("cohere", {"logit_scale": 0.75}),
    "cohere2": ("cohere2", WINDOW | {"num_hidden_layers": 4, "logit_scale": 0.75}),
    "olmo3, yarn": ("olmo3", WINDOW | OLMO3 | {"num_hidden_layers": 4}),
    "ernie4_5": ("ernie4_5", {}),
    "exaone4": (
        "exaone4",
        {"layer_types": ["full_attention"] * 3, "num_hidden_layers": 3} | NO_WINDOW,
    ),
    "glm4": ("glm4", {}),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "mpt": (
        "mpt",
        {
            "vocab_size": 1024,
            "d_model": 128,
            "n_heads": 4,
            "max_seq_len": 512,
            "initializer_range": 0.08,
        },
    ),
    "nemotron": ("nemotron", {}),
    "mixtral": ("mixtral", {"sliding_window": None}),
    "granitemoe": ("granitemoe", {"intermediate_size": 96, "logits_scaling": 1.5}),
    "olmoe": ("olmoe", {"intermediate_size": 96, "num_key_value_heads": 4}),
    "qwen2_moe": ("qwen2_moe", {"moe_intermediate_size": 96, "mlp_only_layers": []}),
    "qwen3_moe": ("qwen3_moe", {"moe_intermediate_size": 96, "mlp_only_layers": []}),
    "phi": ("phi", {}),
    "granite 4": (
        "granitemoehybrid",
        GRANITE4 | {"layer_types": ["attention"] * 3, "position_embedding_type": "rope"},
    ),
    "granite 4 h": ("granitemoehybrid", GRANITE4),
    "granite 4 h, mixture": (
        "granitemoehybrid",
        GRANITE4 | {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 96},
    ),
    "falcon_h1": ("falcon_h1", FALCON_H1 | {"mamba_rms_norm": False}),
    "falcon_h1, normed, tied": ("falcon_h1", FALCON_H1 | {"tie_word_embeddings": True}),
    "nemotron_h": ("nemotron_h", NEMOTRON_H),
    "qwen3.5, mixture": ("qwen3_5_moe_text", QWEN35 | {"moe_intermediate_size": 96}),
    "gpt_oss": ("gpt_oss", GPT_OSS),
}


def _folder(folder: Path, family: str, **changes: object) -> Path:
    sizes = SIZES if "hidden_size" in FAMILIES[family] and family != "bloom" else {}
    make_model(folder, family, **(sizes | changes))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, folder)
    return folder


def _request(folder: Path, output: Path, **options: Any) -> ExportRequest:
    model = LocalModel.open(folder)
    adapter = random_adapter(Lora(rank=2, alpha=3.0), model.shape)
    return ExportRequest(adapter=adapter, model=model, output=output, **options)


def _logits(folder: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Return our engine's logits of a merged folder."""
    return open_decoder(LocalModel.open(folder)).logits(tokens, BASE).numpy()


def _centred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values - values.mean(dtype=np.float64).astype(np.float32)


LONG = frozenset({"granite 4", "granite 4 h", "falcon_h1"})
"""What others are more of."""


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.long] if name in LONG else [])
        for name, case in CASES.items()
    ],
)
def test_llama_cpp_computes_what_was_trained(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    # in 16 bits the errors of many layers add up
    quantize = "f32" if changes.get("num_hidden_layers", 0) > 20 else None
    folder = _folder(tmp_path / "base", family, **changes)
    export("gguf", _request(folder, tmp_path / "m.gguf", quantize=quantize))
    export("hf", _request(tmp_path / "base", tmp_path / "hf"))
    tokens = np.random.default_rng(1).integers(4, 1024, max(LENGTHS)).tolist()
    with Client(tmp_path / "m.gguf", context=512) as client:
        for length in LENGTHS:
            # both are beyond what changes LongRoPE: by the document here, by the context there
            logits = _logits(tmp_path / "hf", tokens[:length])[-1]
            found = client.log_probabilities(tokens[:length], 1024)
            assert np.abs(_centred(found) - _centred(logits)).max() < 2e-2
            assert logits.std() > 0.5


@pytest.mark.parametrize("quantize", ["f16", "q8_0"])
def test_experts_in_mx_fp4_stay_what_they_are(tmp_path: Path, quantize: str) -> None:
    folder = make_mxfp4(tmp_path / "base", **SIZES | GPT_OSS)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, folder)
    result = export("gguf", _request(folder, tmp_path / "m.gguf", quantize=quantize))
    base, file = LocalModel.open(folder), LocalModel.open(tmp_path / "m.gguf")
    assert file.shape.formats is not None

    experts = [name for name in base.tensors if ".experts." in name and name.endswith("weight")]
    assert {file.tensors[name].dtype for name in experts} == {"MXFP4"}
    for name in experts:
        np.testing.assert_array_equal(file.read(name), base.read(name).astype(np.float32))
    tokens = np.random.default_rng(1).integers(4, 1024, 64).tolist()
    with Client(result.path, context=512) as client:
        found = client.log_probabilities(tokens, 1024)
    # activations become 8 bits before they meet such blocks
    logits = open_decoder(file).logits(tokens, BASE)[-1].numpy()
    assert np.abs(_centred(found) - _centred(logits)).max() < 0.1
    assert logits.std() > 0.5


def test_latents_in_two_tensors_are_what_llama_cpp_takes_them_for(tmp_path: Path) -> None:
    base = LocalModel.open(_folder(tmp_path / "base", "deepseek_v3", **LATENTS))
    absorbed(model_file(base, Merge(changes={}), "f32"), base.shape).write(tmp_path / "m.gguf")
    model = LocalModel.open(tmp_path / "m.gguf")
    tokens = np.random.default_rng(1).integers(4, 1024, 64).tolist()
    with Client(tmp_path / "m.gguf", context=512) as client:
        found = client.log_probabilities(tokens, 1024)

    for ours in (base, model):
        logits = open_decoder(ours).logits(tokens, BASE)[-1].numpy()
        assert np.abs(_centred(found) - _centred(logits)).max() < 2e-3


def test_bounds_of_a_rotation_that_llama_cpp_rounds_are_told(tmp_path: Path) -> None:
    bounds = {"original_max_position_embeddings": 300}
    rotation = {"rope_parameters": GPT_OSS["rope_parameters"] | bounds}
    model = LocalModel.open(_folder(tmp_path / "base", "gpt_oss", **GPT_OSS | rotation))

    (note,) = model_file(model, Merge(changes={}), "f16").notes

    assert "rounds the bounds of this model's rotation" in note
    assert "0.46 and 4.46 become 0 and 5, which turns a channel by up to" in note


@pytest.mark.parametrize("quantization", MIXTURES)
def test_every_quantization_loads_and_errs_by_its_bits(tmp_path: Path, quantization: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    folder = _folder(tmp_path / "base", "llama", **sizes, initializer_range=0.03)
    export("gguf", _request(folder, tmp_path / "m.gguf", quantize=quantization))
    export("hf", _request(folder, tmp_path / "hf"))
    tokens = np.random.default_rng(1).integers(4, 1024, 32).tolist()
    logits = _centred(_logits(tmp_path / "hf", tokens)[-1])
    with Client(tmp_path / "m.gguf", context=512) as client:
        found = _centred(client.log_probabilities(tokens, 1024))

    error = np.sqrt(np.square(found - logits).mean() / np.square(logits).mean())
    limits = {"f32": 1e-4, "f16": 2e-3, "bf16": 0.02, "q8_0": 0.05, "q6_k": 0.15, "q5_k_m": 0.3,
              "q4_k_m": 0.5, "q4_0": 0.6}  # fmt: skip
    assert error < limits[quantization]


LORAS = [
    ("llama", {}, Lora(rank=2, alpha=3.0)),
    ("llama", {}, Lora(rank=4, rslora=True, targets=("q_proj", "k_proj"), layers=1)),
    ("llama", {}, Lora(rank=4, rank_pattern=("q_proj=2", "down_proj=8"), alpha_pattern=("v_proj=3",))),
    ("qwen3", {}, Lora(rank=2)),
    ("gemma2", WINDOW | {"query_pre_attn_scalar": 144}, Lora(rank=2)),
    ("phi3", NO_WINDOW, Lora(rank=2)),
    ("qwen3_5_text", QWEN35, Lora(rank=2)),
    ("gpt2", GPT2, Lora(rank=2)),
    ("gpt_neox", {"rotary_pct": 0.5} | rope("default", partial_rotary_factor=0.5), Lora(rank=2)),
    ("granitemoehybrid", GRANITE4, Lora(rank=2)),
    pytest.param(
        "falcon_h1", FALCON_H1, Lora(rank=2, targets=("all-linear", "mamba.out_proj")),
        marks=pytest.mark.long,
    ),
    pytest.param("gpt_oss", GPT_OSS, Lora(rank=2), marks=pytest.mark.long),
    ("deepseek_v3", LATENTS, Lora(rank=2, targets=("o_proj", "mlp"))),
    ("gemma3n_text", GEMMA3N,
     Lora(rank=2, alpha=3.0, targets=(
         "all-linear", "per_layer_input_gate", "per_layer_projection", "laurel.linear_left",
         "laurel.linear_right"))),
    ("gemma4_text", GEMMA4,
     Lora(rank=2, alpha=3.0, targets=("all-linear", "per_layer_input_gate"))),
]  # fmt: skip


def test_adapters_of_what_makes_latents_are_refused_alone(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "base", "deepseek_v3", **LATENTS)
    request = _request(folder, tmp_path / "lora.gguf", alone=True)
    with pytest.raises(UsageError, match=r"computes self_attn\.q_a_proj,.* without adapters"):
        export("gguf", request)


def test_scores_that_grow_without_yarn_are_refused(tmp_path: Path) -> None:
    scaling = rope("linear", factor=4.0, mscale_all_dim=1.0)
    folder = _folder(tmp_path / "base", "deepseek_v3", **LATENTS | scaling)
    with pytest.raises(UsageError, match="scores are scaled by more than the root"):
        export("gguf", _request(folder, tmp_path / "model.gguf"))


@pytest.mark.parametrize(("family", "changes", "lora"), LORAS)
def test_an_adapter_over_its_base_is_the_merged_model(
    tmp_path: Path, family: str, changes: dict[str, Any], lora: Lora
) -> None:
    model = LocalModel.open(_folder(tmp_path / "base", family, **changes))
    adapter = random_adapter(lora, model.shape)
    request = ExportRequest(
        adapter=adapter, model=model, output=tmp_path / "merged.gguf", quantize="f32"
    )
    export("gguf", request)
    export("gguf", replace(request, output=tmp_path / "lora.gguf", alone=True))
    model_file(model, Merge(changes={}), "f32").write(tmp_path / "base.gguf")
    tokens = np.random.default_rng(1).integers(4, 1024, 32).tolist()

    def logits(file: str, lora: Path | None = None) -> NDArray[np.float32]:
        with Client(tmp_path / file, context=512, adapter=lora) as client:
            return client.log_probabilities(tokens, 1024)

    merged, base = logits("merged.gguf"), logits("base.gguf")
    assert np.abs(logits("base.gguf", tmp_path / "lora.gguf") - merged).max() < 2e-3
    assert np.abs(base - merged).max() > 0.05
