"""What mlx-lm takes: the adapter for ``--adapter-path``, in a folder that is the merged model too.

mlx-lm keeps LoRA as ``lora_a`` (inputs, rank) and ``lora_b`` (rank, outputs), and its own names
for some architectures. Its merged models are those of transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import CONFIG, LoadedAdapter
from edgetune.adapters.mlx_lm import MLX_WEIGHTS, PARTS, mlx_block
from edgetune.errors import UsageError
from edgetune.exporters.base import Exported, ExportRequest
from edgetune.exporters.folder import folder_bytes, new_folder
from edgetune.exporters.gguf.delta import attention_interval
from edgetune.exporters.hf import Merged
from edgetune.exporters.mlx_differences import CLIP, differences
from edgetune.methods.lora import Lora, LowRank
from edgetune.model import LocalModel
from edgetune.model.families.gemma4 import FULL, SLIDING
from edgetune.network.mixers.state_space import StateSpace
from edgetune.shape import ModelShape, Rotary
from edgetune.tensors.writer import Outgoing, write_safetensors

TYPES: Final = frozenset({
    "apertus", "cohere", "cohere2", "deepseek_v2", "ernie4_5", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma4",
    "gemma4_text", "gemma4_unified", "glm4", "gpt2", "gpt_neox", "granite", "granitemoe", "helium", "hunyuan_v1_dense", "lfm2", "llama", "ministral3",
    "mistral",
    "mixtral", "nemotron", "nemotron_h", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2", "qwen3", "qwen3_5",
    "qwen3_moe",
    "seed_oss", "smollm3",
    "stablelm", "starcoder2",
})  # fmt: skip
"""The model types that mlx-lm computes as transformers does; it has no others, or other formulas."""

_LARGEST: Final = 1e30
"""A bound of steps that is none: JSON has no infinity."""

_SCALED_BY_ROPE_TYPE: Final = frozenset({"gemma3_text", "gemma3n_text", "olmo3"})
"""Families whose ``rope_scaling`` scales nothing unless it has a ``rope_type``."""

_PARTS: Final = {ours.partition(".")[0]: theirs for theirs, ours in PARTS.items()}


def export_mlx(request: ExportRequest) -> Exported:
    """Write the merged model, and the adapter beside it.

    Raises:
        UsageError: if mlx-lm does not know the model or the method, or the output folder cannot be
            made.
        CheckFailedError: if a merged weight cannot be written in the output's number format.
    """
    _refuse_unknown(request.model)
    adapter, shape = request.adapter, request.model.shape
    tensors, config = adapter_tensors(adapter, shape), adapter_config(adapter, shape)
    merged = _as_mlx_names(Merged.of(request), shape)
    merged = replace(merged, config=readable_config(merged.config, shape))
    needed = merged.needed + sum(tensor.nbytes for tensor in tensors.values())
    with new_folder(request.output, needed) as folder:
        merged.write(folder)
        named = [Outgoing.of(name, tensors[name]) for name in sorted(tensors)]
        write_safetensors(folder / MLX_WEIGHTS, named, made_for="mlx")
        _write_config(folder / CONFIG, config)
        request.verify(folder)
        nbytes = folder_bytes(folder)
    return Exported(folder=request.output, nbytes=nbytes)


def adapter_tensors(adapter: LoadedAdapter, shape: ModelShape) -> dict[str, NDArray[np.float32]]:
    """Return the adapter's tensors by mlx-lm's names, transposed as it has them.

    Raises:
        UsageError: if the method is not one that mlx-lm loads.
    """
    lora, tensors = _lora(adapter, shape).evened(shape, adapter.tensors)
    widest = _widest(lora, shape)
    renamed = {}
    for layer in range(shape.layers):
        prefix = shape.block(layer)
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                module, part, _ = name.removeprefix(prefix).rsplit(".", 2)
                full = f"{mlx_block(shape, layer)}{module}.{_PARTS[part]}"
                renamed[full] = _widened(tensor.T, part, widest)
    return renamed


def adapter_config(adapter: LoadedAdapter, shape: ModelShape) -> dict[str, Any]:
    """Return mlx-lm's description of the adapter.

    It adapts the named projections of the last ``num_layers`` blocks; where the file has no
    tensors for one, its update stays zero.

    Raises:
        UsageError: if the method is not one that mlx-lm loads.
    """
    lora = _lora(adapter, shape)
    targets = lora.select(shape)
    widest = _widest(lora, shape)
    return {
        "fine_tune_type": "lora",
        "num_layers": shape.layers - lora.first_layer(shape),
        "lora_parameters": {
            "rank": widest,
            "scale": lora.scale,
            "dropout": lora.dropout,
            "keys": sorted({target.linear.module for target in targets}),
        },
    }


def readable_config(config: Mapping[str, object], shape: ModelShape) -> dict[str, object]:
    """Return a config with the fields that mlx-lm 0.32 reads and transformers 5 has elsewhere.

    mlx-lm takes its defaults where a field is missing: a rotation of another base frequency.
    """
    written, inner = dict(config), config.get("text_config")
    if shape.inside is not None and isinstance(inner, dict):
        text = readable_config(inner, replace(shape, inside=None))
        written["text_config"] = {**text, "tie_word_embeddings": shape.tied}
        return {**written, "vocab_size": shape.vocabulary}
    ropes = config.get("rope_parameters")
    if isinstance(ropes, dict) and "full_attention" in ropes:
        written["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
        ropes = ropes["full_attention"]
    if isinstance(ropes, dict) and "rope_theta" in ropes:
        written["rope_theta"] = ropes["rope_theta"]
        if ropes.get("rope_type", "default") != "default":
            rule = {k: v for k, v in ropes.items() if k != "rope_theta"}
            written["rope_scaling"] = {"type": ropes["rope_type"], **rule}
    if isinstance(ropes, dict) and "partial_rotary_factor" in ropes:
        written["partial_rotary_factor"] = ropes["partial_rotary_factor"]
    rotary = shape.attention[0].rotary
    if shape.family == "gpt_neox" and rotary is not None:
        written["rotary_emb_base"] = rotary.theta
        written["rotary_pct"] = rotary.dimensions / shape.blocks[0].head_dim
    experts = next((kind.experts for kind in shape.kinds if kind.experts is not None), None)
    if experts is not None and "num_experts" not in config:
        written["num_experts"] = experts.number
    if shape.family == "gpt2":
        written |= {
            "n_embd": shape.hidden_size,
            "n_layer": shape.layers,
            "n_ctx": shape.max_context,
        }
        written |= {"n_head": shape.blocks[0].heads, "n_positions": shape.max_context}
    if shape.family == "apertus":
        written |= {"mlp_bias": False, "post_norm": False, "qk_norm": True}
        if rotary is not None and not (ropes or config.get("rope_scaling")):
            written |= _usual_rotation(rotary)
    scaling = config.get("rope_scaling")
    named = not isinstance(scaling, dict) or "rope_type" in scaling
    if shape.family in _SCALED_BY_ROPE_TYPE and not named and "rope_parameters" not in config:
        del written["rope_scaling"]  # which scales nothing, but by its old name does there
    if shape.family == "lfm2":
        written["block_dim"] = shape.hidden_size
    if shape.family in {"gemma4_text", "gemma4_unified_text"}:
        seeing_all = shape.blocks[-1]  # the last layer does
        written["global_head_dim"] = seeing_all.head_dim
        written["num_global_key_value_heads"] = seeing_all.kv_heads
        written["hidden_size_per_layer_input"] = seeing_all.per_layer
    if shape.family == "gemma3n_text":
        for name, value in _wanted_of_gemma3n(config, shape).items():
            if written.get(name) is None:
                written[name] = value
    if shape.family == "nemotron_h":
        written |= _wanted_of_nemotron_h(shape)
    if shape.family == "qwen3_5_text":
        written["full_attention_interval"] = attention_interval(shape)
    return written


def _usual_rotation(rotary: Rotary) -> dict[str, object]:
    """Return the rotation that a config is silent of."""
    rule = {
        "type": rotary.scaling,
        "factor": rotary.factor,
        "low_freq_factor": rotary.low_frequency_factor,
        "high_freq_factor": rotary.high_frequency_factor,
        "original_max_position_embeddings": rotary.original_context,
    }
    return {"rope_theta": rotary.theta, "rope_scaling": rule}


def _wanted_of_gemma3n(config: Mapping[str, object], shape: ModelShape) -> dict[str, object]:
    """Return what mlx-lm's Gemma 3n has no defaults for; configs leave out what transformers has."""
    block, altup, table = shape.blocks[0], shape.altup, shape.per_layer
    assert altup is not None  # as all models of the family have
    assert table is not None
    windows = [rule.window for rule in shape.attention]
    rotaries = {rule.window is None: rule.rotary for rule in shape.attention}
    thetas = {sees_all: rotary.theta for sees_all, rotary in rotaries.items() if rotary is not None}
    cutoffs = (block.cutoff for block in shape.blocks)
    return {
        "model_type": shape.family,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "intermediate_size": [block.ffn_size for block in shape.blocks],
        "num_attention_heads": block.heads,
        "num_key_value_heads": block.kv_heads,
        "head_dim": block.head_dim,
        "rms_norm_eps": shape.norm.eps,
        "vocab_size": shape.vocabulary,
        "vocab_size_per_layer_input": table.rows,
        "hidden_size_per_layer_input": table.size,
        "num_kv_shared_layers": sum(rule.source is not None for rule in shape.attention),
        "layer_types": [FULL if window is None else SLIDING for window in windows],
        "sliding_window": next((window for window in windows if window is not None), None),
        "rope_theta": thetas.get(True),
        "rope_local_base_freq": thetas.get(False),
        "max_position_embeddings": shape.max_context,
        "final_logit_softcapping": shape.logit_softcap,
        "activation_sparsity_pattern": [0.0 if x is None else NormalDist().cdf(x) for x in cutoffs],
        "altup_num_inputs": altup.count,
        "altup_active_idx": altup.active,
        "altup_correct_scale": altup.scaled,
        "altup_coef_clip": config.get("altup_coef_clip", CLIP),
        "laurel_rank": block.linear_by_role["laurel_left"].outputs,
    }


def _wanted_of_nemotron_h(shape: ModelShape) -> dict[str, object]:
    """Return what mlx-lm's Nemotron-H has no defaults for, or under another name."""
    scans = next(kind for kind in shape.kinds if isinstance(kind.recurrent, StateSpace))
    mixer = scans.recurrent
    assert isinstance(mixer, StateSpace)
    biased = scans.linear_by_role["scan_in"].bias
    return {
        "time_step_limit": [mixer.least_step, _LARGEST],
        "attention_bias": False,
        "mamba_proj_bias": biased,
        "use_bias": biased,
        "use_conv_bias": mixer.bias,
        "mlp_bias": any(x.bias for x in shape.all_linears if x.role == "up"),
    }


def _refuse_unknown(model: LocalModel) -> None:
    model_type = model.config.get("model_type")
    if model_type not in TYPES:
        raise UsageError(
            f"mlx-lm has no {model_type} models, or computes them otherwise than transformers does "
            f"(it agrees on {', '.join(sorted(TYPES))}). Export the merged model (--to hf) or the "
            "adapter itself (--to peft)."
        )
    if reasons := differences(model):
        raise UsageError(
            f"mlx-lm computes this {model_type} model otherwise: {'; '.join(reasons)}. Export the "
            "merged model (--to hf) or the adapter itself (--to peft)."
        )


def _widest(lora: LowRank, shape: ModelShape) -> int:
    """Return the largest rank of a target: mlx-lm has one for all."""
    return max(lora.rank_of(target) for target in lora.select(shape))


def _widened(tensor: NDArray[np.float32], part: str, rank: int) -> NDArray[np.float32]:
    """Return ``lora_a`` (inputs, rank) or ``lora_b`` (rank, outputs) with components of zero."""
    missing = rank - tensor.shape[1 if part == "lora_A" else 0]
    after = ((0, 0), (0, missing)) if part == "lora_A" else ((0, missing), (0, 0))
    return np.pad(tensor, after) if missing else tensor


def _lora(adapter: LoadedAdapter, shape: ModelShape) -> Lora:
    if not isinstance(adapter.method, Lora):
        raise UsageError(
            f"mlx-lm has no {adapter.method.kind} (it has lora). Export the adapter itself "
            "(--to peft) or, if it can be merged, the model (--to hf)."
        )
    if adapter.method.modules_to_save:
        raise UsageError(
            f"mlx-lm's adapters have no trained {' and '.join(adapter.method.modules_to_save)}. "
            "Export the merged model (--to hf), or the adapter itself (--to peft)."
        )
    if adapter.method.adapts_experts(shape):
        raise UsageError(
            "Adapters of experts are not written for mlx-lm, which has others for gate and up. "
            "Export the merged model (--to hf), or the adapter itself (--to peft)."
        )
    return adapter.method


def _as_mlx_names(merged: Merged, shape: ModelShape) -> Merged:
    """Leave out the prefix before which mlx-lm's GPT-2 puts its own; Nemotron-H's is the hub's."""
    others = {"gpt2": ("transformer.", ""), "nemotron_h": ("model.", "backbone.")}
    if shape.family not in others:
        return merged
    ours, theirs = others[shape.family]
    shards = {
        name: [replace(x, name=re.sub(f"^{re.escape(ours)}", theirs, x.name)) for x in shard]
        for name, shard in merged.shards.items()
    }
    return replace(merged, shards=shards)


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
