"""What of a model mlx-lm 0.32 computes otherwise than transformers does, or does not read."""

from __future__ import annotations

from math import isclose, log
from typing import Final

import numpy as np

from edgetune.model import LocalModel
from edgetune.model.config import Fields
from edgetune.model.rotary import rope_table
from edgetune.model.weights import stored_tensors

_BEFORE_YARN: Final = 4096
"""The context before YaRN that mlx-lm's DeepSeek-V2 takes where the rotation's table has none."""

CLIP: Final = 120.0
"""How large coefficients of Gemma 3n's streams may be in a config that does not say it."""


def differences(model: LocalModel) -> list[str]:
    """Return what mlx-lm would compute otherwise of a model whose type it has."""
    others = {
        "apertus": _other_in_apertus,
        "deepseek_v2": _other_in_deepseek,
        "gemma3n_text": _other_in_gemma3n,
        "nemotron_h": _other_in_nemotron_h,
    }
    other = others.get(model.shape.family)
    return [] if other is None else other(model)


def _other_in_apertus(model: LocalModel) -> list[str]:
    """Return what of an Apertus model mlx-lm does not read."""
    shape, reasons = model.shape, []
    block = shape.blocks[0]
    if block.xielu is None:
        reasons.append(f"its activation is {block.activation}")
    if block.linear_by_role["q"].bias:
        reasons.append("its attention has biases")
    if block.queries != shape.hidden_size:
        reasons.append("its heads together are not as wide as its hidden size")
    return reasons


def _other_in_deepseek(model: LocalModel) -> list[str]:
    """Return what of a DeepSeek-V2 model mlx-lm does not read: it has YaRN and SiLU alone."""
    shape, reasons = model.shape, []
    if shape.blocks[0].activation != "silu":
        reasons.append(f"its activation is {shape.blocks[0].activation}")
    if shape.tied:
        reasons.append("its head is its embedding")
    rule, table = shape.attention[0].rotary, Fields(rope_table(Fields(model.config)))
    if rule is None or rule.scaling != "yarn" or table.raw("factor") is None:
        return [*reasons, "its rotation is not YaRN's with a factor"]
    growth = 0.1 * log(max(rule.factor, 1.0))
    scale, scale_all = table.number("mscale", 1.0), table.number("mscale_all_dim", 0.0)
    if not isclose((1 + growth * scale) / (1 + growth * scale_all), rule.attention_factor):
        reasons.append("what rotates is multiplied by another factor")
    before = table.size("original_max_position_embeddings", _BEFORE_YARN)
    if before != rule.original_context or not rule.truncate:
        reasons.append("YaRN's bounds are others")
    return reasons


def _other_in_gemma3n(model: LocalModel) -> list[str]:
    """Return what of a Gemma 3n model mlx-lm does not read, and what it wants and is not there.

    It computes as transformers does where it keeps keys and values, as in generation; without a cache
    layers that read others' take projections of their own, which files have and nothing uses.
    """
    shape, inner = model.shape, Fields(model.config).table("text_config")
    block, clip = shape.blocks[0], inner.get("altup_coef_clip", CLIP)
    last = model.tensors[f"{shape.block(shape.layers - 1)}self_attn.q_proj.weight"].name
    differences = {
        f"its activation is {block.activation}": block.activation != "gelu_tanh",
        "its attention has biases": block.linear_by_role["q"].bias,
        "its head is a matrix of its own": not shape.tied,
        "its rotation is scaled": any(rotary.scaling != "none" for rotary in shape.rotaries),
        "its layers all see a window, or none does":
            len({rule.window is None for rule in shape.attention}) == 1,
        "its files lack the keys' and values' projections that its last layers do not use":
            last.replace("q_proj", "k_proj") not in stored_tensors(model.folder),
        "it clips coefficients of streams (altup_coef_clip)":
            isinstance(clip, int | float) and _largest_coefficient(model) > clip,
    }  # fmt: skip
    return [reason for reason, there in differences.items() if there]


def _largest_coefficient(model: LocalModel) -> float:
    """Return the largest coefficient by which streams are mixed or moved."""
    roles = {"altup_prediction", "altup_correction"}
    names = [
        f"{model.shape.block(layer)}{tensor.name}"
        for layer, block in enumerate(model.shape.blocks)
        for tensor in block.mixer_tensors
        if tensor.role in roles
    ]
    return max(float(np.abs(model.read(name).astype(np.float32)).max()) for name in names)


def _other_in_nemotron_h(model: LocalModel) -> list[str]:
    """Return what of a Nemotron-H model mlx-lm 0.32 does not read."""
    shape, groups = model.shape, Fields(model.config).size("n_group", 1)
    rules = [kind.experts for kind in shape.kinds if kind.experts is not None]
    reasons = {
        f"its activation is {shape.blocks[0].activation}": shape.blocks[0].activation != "relu2",
        "none of its layers is Mamba": not any(kind.recurrent for kind in shape.kinds),
        "its experts are chosen in groups": bool(rules) and groups > 1,
        "a token goes through one expert":
            any(rule.chosen == 1 and rule.normalised for rule in rules),
    }  # fmt: skip
    return [reason for reason, there in reasons.items() if there]
