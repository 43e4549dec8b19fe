"""Models of transformers as GGUF files, converted as llama.cpp's own script does it.

Names of tensors are those of the ``gguf`` package; what is done to tensors is written out here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_files import random_blocks, write_gguf
from numpy.typing import NDArray
from safetensors.numpy import save_file

import edgetune_profiles
from edgetune.exporters.gguf.file import GgufFile
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.updates import Merge
from edgetune.model import LocalModel
from edgetune.shape import ModelShape
from edgetune.tensors.gguf.dequantize import dequantize
from edgetune.tensors.gguf.quantize import quantized
from edgetune.tensors.gguf.types import BY_NAME, QUANTIZED
from edgetune.tensors.gguf.writer import Value

Values = NDArray[np.float32]

TINY = Path(edgetune_profiles.__file__).parent / "tiny"

ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "phi3": "phi3", "olmo2": "olmo2", "gpt2": "gpt2",
    "gpt_neox": "gptneox", "granite": "granite", "smollm3": "smollm3", "stablelm": "stablelm",
    "starcoder2": "starcoder2", "qwen3_moe": "qwen3moe", "mixtral": "llama", "phimoe": "phimoe",
}  # fmt: skip
PAIRED = frozenset({"llama", "granite", "smollm3"})
"""Architectures in which channels that rotate together are made neighbours."""


def convert(
    folder: Path,
    file: Path,
    kind: str | Mapping[str, str] = "F32",
    tokenizer: Mapping[str, Any] | None = None,
    *,
    part: int = 0,
) -> Path:
    """Write a model's folder as a GGUF file; matrices in a type, or each by a part of its name.

    ``tokenizer`` is what the file says of one; ``part`` is how many tensors a file has at most.
    Matrices in blocks have random bits of their own: what they hold is what the file says.
    """
    model = LocalModel.open(folder)
    architecture = ARCHITECTURES[str(model.config["model_type"])]
    names = gguf.get_tensor_name_map(_arch(architecture), model.shape.layers)
    tensors = {}
    for name in model.tensors:
        values = _converted(architecture, name, model)
        target = names.get_name(_together(name), try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        if _together(name) != name:
            target = target if target.endswith(".weight") else f"{target}.weight"
            wanted = _wanted(kind, target)
            one = _stored(values, wanted, seed=len(tensors))[None]
            before = [tensors[target][0]] if target in tensors else []
            tensors[target] = (np.concatenate([*before, one]), wanted)
            continue
        wanted = _wanted(kind, target) if values.ndim == 2 else "F32"
        tensors[target] = (_stored(values, wanted, seed=len(tensors)), wanted)
    metadata = _metadata(architecture, model.config) | dict(tokenizer or {})
    tensors |= _rotation(model.config)
    return write_gguf(file, architecture, metadata, tensors, part=part)


def exported(model: LocalModel, file: Path, quantization: Any) -> Path:
    """Write a model's folder as our own export does, with the tokenizer of ``tiny``."""
    facts = TokenizerFacts.read(TINY)
    model_file(model, Merge(changes={}), quantization, facts).write(file)
    return file


def in_numbers(model: LocalModel, folder: Path) -> LocalModel:
    """Return the numbers of a GGUF file as a folder in float32."""
    folder.mkdir()
    tensors = {name: np.array(model.read(name)) for name in model.tensors}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config))
    return LocalModel.open(folder)


def absorbed(file: GgufFile, shape: ModelShape) -> GgufFile:
    """Return a file as llama.cpp's script makes it today: latents become keys and values apart."""
    block, changed = shape.blocks[0], []
    rule = block.attention
    assert rule is not None
    assert rule.latent is not None
    heads, rank, wide = block.heads, rule.latent.rank, rule.latent.value_dim
    for tensor in file.tensors:
        if "attn_kv_b" not in tensor.name:
            changed.append(tensor)
            continue
        raw = np.concatenate([chunk.reshape(-1) for chunk in tensor.chunks()])
        plain = raw.view(np.float32) if tensor.type.name == "F32" else None
        blocks = raw.reshape(-1, tensor.type.nbytes)
        rows = dequantize(tensor.type.name, blocks) if plain is None else plain
        apart = rows.reshape(heads, -1, rank)
        keys, values = apart[:, :-wide].swapaxes(1, 2), apart[:, -wide:]
        for name, part in (("attn_k_b", keys), ("attn_v_b", values)):
            blocks = quantized(np.ascontiguousarray(part).reshape(-1, part.shape[-1]), tensor.type)
            new = replace(
                tensor, name=tensor.name.replace("attn_kv_b", name), shape=part.shape,
                chunks=lambda blocks=blocks: iter([blocks]),
            )  # fmt: skip
            changed.append(new)
    rotated = file.metadata["deepseek2.rope.dimension_count"].content
    sizes = {
        "head_count_kv": 1, "key_length": rank + rotated, "value_length": rank,
        "key_length_mla": block.head_dim, "value_length_mla": wide,
    }  # fmt: skip
    told = {f"deepseek2.attention.{key}": Value("uint32", size) for key, size in sizes.items()}
    return replace(file, metadata={**file.metadata, **told}, tensors=tuple(changed))


def fused(file: GgufFile) -> GgufFile:
    """Return a file with queries, keys and values in one tensor, weights as biases."""
    changed = {tensor.name: tensor for tensor in file.tensors}
    for name, tensor in list(changed.items()):
        if ".attn_q." not in name:
            continue
        each = [changed.pop(name.replace("attn_q", f"attn_{part}")) for part in "qkv"]
        rows = sum(one.shape[0] for one in each)
        changed[name] = replace(
            tensor, name=name.replace("attn_q", "attn_qkv"), shape=(rows, *tensor.shape[1:]),
            chunks=lambda each=each: (chunk for one in each for chunk in one.chunks()),
        )  # fmt: skip
    return replace(file, tensors=tuple(changed.values()))


def _rotation(config: Mapping[str, Any]) -> dict[str, tuple[Values, str]]:
    """Return the tensors of factors that a LongRoPE has."""
    table = config.get("rope_parameters") or {}
    return {
        f"rope_factors_{length}.weight": (np.array(table[f"{length}_factor"], np.float32), "F32")
        for length in ("long", "short")
        if table.get("rope_type") == "longrope"
    }


def _together(name: str) -> str:
    """Return the name under which llama.cpp's script puts the tensors of experts together."""
    merged = re.sub(r"(?<=mlp\.experts)\.\d+", "", name)
    return re.sub(
        r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.\d+\.", r"layers.\1.feed_forward.experts.",
        merged,
    )  # fmt: skip


def _wanted(kind: str | Mapping[str, str], name: str) -> str:
    if isinstance(kind, str):
        return kind
    return next(found for part, found in kind.items() if part in name)


def _stored(values: Values, kind: str, seed: int) -> NDArray[Any]:
    if kind not in QUANTIZED:
        return values
    rows, inputs = values.shape
    blocks = random_blocks(kind, rows * inputs // BY_NAME[kind].block, seed)
    return _calmed(kind, blocks).reshape(rows, -1)


def _calmed(kind: str, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make the numbers of random blocks as small as weights are."""
    from edgetune.tensors.gguf.finite import HALVES

    if kind == "MXFP4":
        blocks[:, 0] = 122
        return blocks
    factor = 0.05 / dequantize(kind, blocks).std()
    for place in HALVES[kind]:
        scales = np.ascontiguousarray(blocks[:, place : place + 2]).view(np.float16)
        scales = (scales * factor).astype(np.float16)
        blocks[:, place : place + 2] = scales.view(np.uint8)
    return blocks


def _arch(architecture: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def _converted(architecture: str, name: str, model: LocalModel) -> Values:
    values, block = model.read(name).astype(np.float32), model.shape.blocks[0]
    module = name.rsplit(".", 1)[0]
    if architecture in PAIRED and module.endswith(("q_proj", "k_proj")):
        heads = block.heads if module.endswith("q_proj") else block.kv_heads
        apart = values.reshape(heads, 2, -1, *values.shape[1:])
        return apart.swapaxes(1, 2).reshape(values.shape)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gpt2" and values.ndim == 2 and ".h." in name:
        return np.ascontiguousarray(values.T)
    if architecture == "gptneox" and "query_key_value" in name:
        apart = values.reshape(block.heads, 3, -1, *values.shape[1:])
        return apart.swapaxes(0, 1).reshape(values.shape)
    return values


def _metadata(architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    first = _gpt2 if architecture == "gpt2" else _common
    own = first(config) | OWN.get(architecture, lambda _: {})(config)
    return {f"{architecture}.{name}": value for name, value in own.items() if value is not None}


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "context_length": config["n_positions"],
        "embedding_length": config["n_embd"],
        "feed_forward_length": 4 * config["n_embd"],
        "block_count": config["n_layer"],
        "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
    }


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    rotary = config.get("rope_parameters") or {}
    rotary = rotary.get("full_attention", rotary)
    layer_norm = next((config[x] for x in ("layer_norm_eps", "norm_epsilon") if x in config), None)
    return {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "attention.key_length": config.get("head_dim"),
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": layer_norm,
        "rope.freq_base": float(rotary.get("rope_theta", 10_000.0)),
    }


def _partial(config: Mapping[str, Any]) -> dict[str, Any]:
    head = config["hidden_size"] // config["num_attention_heads"]
    share = config["rope_parameters"]["partial_rotary_factor"]
    return {"rope.dimension_count": int(head * share)}


def _experts(config: Mapping[str, Any]) -> dict[str, Any]:
    number = config.get("num_local_experts") or config.get("num_experts")
    if not number:
        return {}
    own = {"expert_count": number, "expert_used_count": config["num_experts_per_tok"]}
    width = config.get("moe_intermediate_size")
    return own | ({"expert_feed_forward_length": width} if width else {})


def _phimoe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what llama.cpp's script says: of what scores grow by, what it computes itself."""
    rotary = config["rope_parameters"]
    if rotary["rope_type"] != "longrope":
        return _experts(config)
    original = rotary["original_max_position_embeddings"]
    ratio = config["max_position_embeddings"] / original
    return _experts(config) | {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": (1 + np.log(ratio) / np.log(original)).item() ** 0.5,
    }


OWN: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "llama": _experts,
    "qwen3moe": _experts,
    "gemma2": lambda config: {
        "attention.sliding_window": config["sliding_window"],
        "attn_logit_softcapping": config["attn_logit_softcapping"],
        "final_logit_softcapping": config["final_logit_softcapping"],
        "attention.scale": config["query_pre_attn_scalar"] ** -0.5,
    },
    "gemma3": lambda config: {
        "attention.sliding_window": config["sliding_window"],
        "attention.scale": config["query_pre_attn_scalar"] ** -0.5,
    },
    "phimoe": _phimoe,
    "phi3": lambda config: {"attention.sliding_window": config["sliding_window"]},
    "gptneox": lambda config: {
        **_partial(config), "use_parallel_residual": config["use_parallel_residual"],
    },
    "stablelm": _partial,
    "granite": lambda config: {
        "attention.scale": float(config["attention_multiplier"]),
        "embedding_scale": float(config["embedding_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "logit_scale": float(config["logits_scaling"]),
    },
}  # fmt: skip
