"""What a GGUF file says of a model's sizes and rules, under llama.cpp's names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import UsageError
from edgetune.exporters.gguf import by_layer, delta, latent, scan, streams
from edgetune.exporters.gguf.architectures import Architecture
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.shape import ModelShape, Rotary
from edgetune.tensors.gguf.writer import Value

_LONGROPE: Final = "longrope"
_HARDLY: Final = 1e-3
"""Shares of a rotation's speed that are not worth a word."""
_BOUNDS: Final = (32.0, 1.0)
"""YaRN's in llama.cpp, which does not read what a file says of them."""


def context_of(shape: ModelShape, architecture: Architecture) -> int:
    """Return the longest context in which llama.cpp computes what was trained.

    It has no windows in most architectures: there, only documents within one are right.
    """
    if architecture.has_windows:
        return shape.max_context
    windows = [rule.window for rule in shape.attention if rule.window is not None]
    return min([shape.max_context, *windows])


def model_metadata(shape: ModelShape, architecture: Architecture) -> dict[str, Value]:
    """Return the sizes and rules of a model.

    Raises:
        UsageError: if llama.cpp cannot rotate as the model does.
    """
    pairs = [*_sizes(shape, architecture), *_attention(shape, architecture)]
    if architecture.by_layer:
        pairs += by_layer.metadata(shape)
    else:
        pairs += [*_multipliers(shape, architecture), *_rotation(shape, architecture)]
    if architecture.latents:
        pairs += latent.metadata(shape)  # in place of what was said before under the same names
    if architecture.scans:
        pairs += scan.metadata(shape)
    if architecture.streams:
        pairs += streams.metadata(shape)
    return {f"{architecture.name}.{key}": value for key, value in pairs}


def rotation_tensors(shape: ModelShape) -> dict[str, NDArray[np.float32]]:
    """Return the tensors by which frequencies are divided, by their names in the file."""
    rule = _main_rotary(shape)
    if rule is None:
        return {}
    if rule.scaling == "proportional":
        return {"rope_freqs.weight": by_layer.rotation_factors(rule)}
    if rule.scaling == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rule)}
    if rule.scaling == _LONGROPE:
        return {
            "rope_factors_long.weight": np.array(rule.long_factors, np.float32),
            "rope_factors_short.weight": np.array(rule.short_factors, np.float32),
        }
    return {}


def _sizes(shape: ModelShape, architecture: Architecture) -> Iterator[tuple[str, Value]]:
    yield "vocab_size", Value("uint32", shape.vocabulary)
    yield "context_length", Value("uint32", context_of(shape, architecture))
    yield "embedding_length", Value("uint32", shape.hidden_size)
    yield "block_count", Value("uint32", shape.layers)
    block = shape.blocks[0]
    routed, width = architecture.routed, block.ffn_size
    if block.experts is not None and routed is not None and routed.ungated:
        width = block.experts.size
    yield "feed_forward_length", Value("uint32", width)
    if block.experts is not None:
        yield "expert_count", Value("uint32", block.experts.number)
        yield "expert_used_count", Value("uint32", block.experts.chosen)
        yield "expert_feed_forward_length", Value("uint32", block.experts.size)
    if block.shared and not (block.experts and block.experts.apart):
        yield "expert_shared_feed_forward_length", Value("uint32", block.ffn_size)
    if architecture.parallel:
        yield "use_parallel_residual", Value("bool", shape.blocks[0].parallel)


def _attention(shape: ModelShape, architecture: Architecture) -> Iterator[tuple[str, Value]]:
    block = next(kind for kind in shape.kinds if kind.attention is not None)
    rms = "_rms" if shape.norm.kind == "rms" else ""
    yield "attention.head_count", Value("uint32", block.heads)
    if architecture.convolved is None:
        yield "attention.head_count_kv", Value("uint32", block.kv_heads)
    else:  # none says that a layer has no attention
        yield "attention.head_count_kv", Value("int32", [each.kv_heads for each in shape.blocks])
        yield "shortconv.l_cache", Value("uint32", architecture.convolved)
    for mixer in (kind.mixer for kind in shape.kinds):
        if isinstance(mixer, GatedDelta):
            yield from delta.metadata(mixer, shape)
    yield "attention.key_length", Value("uint32", block.head_dim)
    yield "attention.value_length", Value("uint32", block.head_dim)
    yield f"attention.layer_norm{rms}_epsilon", Value("float32", shape.norm.eps)
    windows = {rule.window for rule in shape.attention if rule.window is not None}
    if architecture.window_pattern is not None and windows:
        yield "attention.sliding_window", Value("uint32", max(windows))
    softcap = shape.attention[0].softcap
    if softcap is not None:
        yield "attn_logit_softcapping", Value("float32", softcap)
    if shape.logit_softcap is not None:
        yield "final_logit_softcapping", Value("float32", shape.logit_softcap)


def _multipliers(shape: ModelShape, architecture: Architecture) -> Iterator[tuple[str, Value]]:
    if architecture.multipliers:
        yield "attention.scale", Value("float32", shape.attention[0].scale)
        yield "embedding_scale", Value("float32", shape.embedding_scale)
        yield "residual_scale", Value("float32", shape.residual_scale)
        yield "logit_scale", Value("float32", 1 / shape.logit_scale)  # llama.cpp divides
    if architecture.logit_scale:
        yield "logit_scale", Value("float32", shape.logit_scale)
    if shape.attention[0].slopes:
        yield "attention.max_alibi_bias", Value("float32", 8.0)


def _main_rotary(shape: ModelShape) -> Rotary | None:
    """Return the rotation of the layers that see everything."""
    rules = [rule for rule in shape.attention if rule.rotary is not None]
    full = [rule for rule in rules if rule.window is None] or rules
    return full[0].rotary if full else None


def _rotation(shape: ModelShape, architecture: Architecture) -> Iterator[tuple[str, Value]]:
    rule = _main_rotary(shape)
    if rule is None:
        return
    yield "rope.dimension_count", Value("uint32", rule.dimensions)
    yield "rope.freq_base", Value("float32", rule.theta)
    if architecture.corrected:  # by time, height and width in turn, which are one in a text
        thirds = [(rule.dimensions // 2 + 2 - axis) // 3 for axis in range(3)]
        yield "rope.dimension_sections", Value("int32", [*thirds, 0])
    yield from _scaling(rule, shape, architecture)
    others = {x.rotary for x in shape.attention if x.rotary not in (None, rule)}
    for other in others:
        if other is None or other.scaling != "none":
            raise _refused(shape, "scaled rotation in its windowed layers")
        yield "rope.freq_base_swa", Value("float32", other.theta)


def _scaling(
    rule: Rotary, shape: ModelShape, architecture: Architecture
) -> Iterator[tuple[str, Value]]:
    if rule.scaling == "llama3" and not architecture.rotation_tensor:
        raise _refused(shape, "Llama 3's rotation")
    if rule.scaling == "proportional":
        raise _refused(shape, "rotation of a share of each head")
    if rule.scaling == _LONGROPE:
        if shape.family != "phi3":
            raise _refused(shape, "LongRoPE")
        yield "rope.scaling.original_context_length", Value("uint32", rule.original_context)
        yield "rope.scaling.attn_factor", Value("float32", rule.attention_factor)
    if rule.scaling in {"linear", "yarn"}:
        yield "rope.scaling.type", Value("string", rule.scaling)
        yield "rope.scaling.factor", Value("float32", rule.factor)
    if rule.scaling == "yarn":
        if not rule.truncate and not architecture.rounded_bounds:
            raise _refused(shape, "YaRN without whole bounds")
        if (rule.beta_fast, rule.beta_slow) != _BOUNDS:
            raise _refused(shape, "YaRN with other bounds than 32 and 1")
        yield "rope.scaling.original_context_length", Value("uint32", rule.original_context)
        own = 1 + 0.1 * math.log(rule.factor)
        yield "rope.scaling.attn_factor", Value("float32", rule.attention_factor / own)
        yield "rope.scaling.yarn_beta_fast", Value("float32", rule.beta_fast)
        yield "rope.scaling.yarn_beta_slow", Value("float32", rule.beta_slow)


def rounding(rule: Rotary) -> str | None:
    """Return what llama.cpp makes of YaRN's bounds that are not whole, in words; None if they are.

    The ramp between both decides by how much each channel's rotation is slowed.
    """
    if rule.scaling != "yarn" or rule.truncate:
        return None
    bounds = [_bound(rule, turns) for turns in (rule.beta_fast, rule.beta_slow)]
    rounded = [math.floor(bounds[0]), math.ceil(bounds[1])]
    exact, theirs = (_slowed(rule, *each) for each in (bounds, rounded))
    most = float(np.abs(theirs / exact - 1).max())
    if most < _HARDLY:
        return None
    told = f"{bounds[0]:.2f} and {bounds[1]:.2f} become {rounded[0]} and {rounded[1]}"
    return f"{told}, which turns a channel by up to {most:.0%} more or less than in training"


def _bound(rule: Rotary, turns: float) -> float:
    """Return the pair of channels that turns so often in the original context."""
    ratio = rule.original_context / (turns * 2 * math.pi)
    return rule.dimensions * math.log(ratio) / (2 * math.log(rule.theta))


def _slowed(rule: Rotary, low: float, high: float) -> NDArray[np.float64]:
    """Return what each pair's rotation is multiplied by."""
    low, high = max(low, 0.0), min(high, rule.dimensions - 1.0)
    pairs = np.arange(rule.dimensions // 2)
    ramp = np.clip((pairs - low) / max(high - low, 1e-3), 0, 1)
    slowed: NDArray[np.float64] = ramp / rule.factor + 1 - ramp
    return slowed


def _refused(shape: ModelShape, what: str) -> UsageError:
    return UsageError(
        f"llama.cpp has no {what} for {shape.family} models. Export it as a folder: --to hf."
    )


def _llama3_factors(rule: Rotary) -> NDArray[np.float32]:
    """Return what each frequency is divided by (Llama 3.1, as published with its weights)."""
    exponents = np.arange(0, rule.dimensions, 2, dtype=np.float64) / rule.dimensions
    wavelength = 2 * math.pi * rule.theta**exponents
    low, high = rule.low_frequency_factor, rule.high_frequency_factor
    smooth = (rule.original_context / wavelength - low) / (high - low)
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / rule.factor + smooth)).astype(np.float32)
