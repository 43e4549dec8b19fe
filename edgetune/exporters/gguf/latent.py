"""Multi-head latent attention as llama.cpp has it: DeepSeek-V2's architecture serves V3 and GLM, too.

Files have what the second projection makes of latents in one matrix, as models do. Newer ones have it
in two, for attention to the latents themselves; llama.cpp reads both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgetune.shape import Experts, ModelShape
from edgetune.tensors.gguf.writer import Value

LITE = frozenset({26, 27})
"""Numbers of layers at which llama.cpp takes queries to be made in one step, at others in two."""
GATING = {"softmax": 1, "sigmoid": 2}


def differences(shape: ModelShape) -> Iterator[str]:
    """Yield what llama.cpp would compute otherwise."""
    direct = "q" in shape.blocks[0].linear_by_role
    if direct != (shape.layers in LITE):
        made = "one step" if direct else "two steps"
        yield f"its queries are made in {made}, and it has {shape.layers} layers"
    rule = _experts(shape)
    if rule is None:
        yield "none of its layers has experts"
    elif rule.groups > 1:
        yield "its experts are chosen in groups"
    if rule is not None and rule.score == "softmax" and rule.normalised:
        yield "the weights of its experts add up to 1"
    if not all(rotary.interleaved for rotary in shape.rotaries):
        yield "channels of halves rotate together"
    attention, size = shape.attention[0], shape.blocks[0].head_dim
    rotary = attention.rotary
    stretched = rotary is not None and rotary.scaling == "yarn"
    if not stretched and not math.isclose(attention.scale, size**-0.5, rel_tol=1e-6):
        yield "scores are scaled by more than the root of the keys' size"
    if any(rotary.attention_factor != 1.0 for rotary in shape.rotaries):
        yield "what rotates is multiplied by a factor"


def metadata(shape: ModelShape) -> Iterator[tuple[str, Value]]:
    """Yield the sizes of latents, and how experts are chosen."""
    block, attention = shape.blocks[0], shape.attention[0]
    latent, rule, rotary = attention.latent, _experts(shape), attention.rotary
    assert latent is not None
    assert rule is not None
    assert rotary is not None
    yield "attention.kv_lora_rank", Value("uint32", latent.rank)
    if "q_a" in block.linear_by_role:
        yield "attention.q_lora_rank", Value("uint32", block.linear_by_role["q_a"].outputs)
    yield "attention.value_length", Value("uint32", latent.value_dim)
    dense = [layer for layer, each in enumerate(shape.blocks) if each.experts is None]
    yield "leading_dense_block_count", Value("uint32", len(dense))
    yield "expert_count", Value("uint32", rule.number)
    yield "expert_used_count", Value("uint32", rule.chosen)
    yield "expert_feed_forward_length", Value("uint32", rule.size)
    yield "expert_shared_count", Value("uint32", shape.blocks[-1].ffn_size // rule.size)
    yield "expert_weights_scale", Value("float32", rule.factor)
    yield "expert_weights_norm", Value("bool", rule.normalised)
    yield "expert_gating_func", Value("uint32", GATING[rule.score])
    if rotary.scaling == "yarn":
        yield "rope.scaling.attn_factor", Value("float32", 1.0)
        yield "rope.scaling.yarn_log_multiplier", Value("float32", _growth(shape))


def _growth(shape: ModelShape) -> float:
    """Return by how much scores grow with the logarithm of YaRN's factor, before it is squared."""
    attention, size = shape.attention[0], shape.blocks[0].head_dim
    rotary = attention.rotary
    assert rotary is not None
    if rotary.factor == 1.0:
        return 0.0
    return (math.sqrt(attention.scale * math.sqrt(size)) - 1) / math.log(rotary.factor)


def _experts(shape: ModelShape) -> Experts | None:
    return shape.blocks[-1].experts
