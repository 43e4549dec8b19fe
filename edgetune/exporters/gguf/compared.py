"""Whether llama.cpp computes a model as it is trained; all that it would do otherwise, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from edgetune.errors import UsageError
from edgetune.exporters.gguf import by_layer, latent, scan, streams
from edgetune.exporters.gguf.architectures import (
    ARCHITECTURES,
    Architecture,
    Routed,
    granite4,
    nemotron_h,
)
from edgetune.model.families.bloom import slopes
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.network.mixers.short_convolution import ShortConvolution
from edgetune.shape import BlockShape, ModelShape

_OF_SEVERAL: Final = {"granitemoehybrid": granite4, "nemotron_h": nemotron_h}
"""Families whose models are of one architecture or another."""
NOT_WRITTEN: Final[Mapping[str, str]] = {
    "phimoe": "llama.cpp weighs its experts by one softmax, the model each by its own; nor does it take "
    "the mean off in norms",
}
"""Families that llama.cpp has, and why no files of theirs are made."""


def architecture_of(shape: ModelShape) -> Architecture:
    """Return llama.cpp's architecture for a model.

    Raises:
        UsageError: naming all that llama.cpp would compute otherwise.
    """
    chosen = _OF_SEVERAL.get(shape.family)
    found = ARCHITECTURES.get(shape.family) if chosen is None else chosen(shape)
    if found is None and shape.family in NOT_WRITTEN:
        raise UsageError(
            f"GGUF files of {shape.family} models are not written: {NOT_WRITTEN[shape.family]}. "
            "Export the model as a folder: --to hf."
        )
    if found is None:
        raise UsageError(
            f"No architecture of llama.cpp computes {shape.family} models as they are trained here. "
            "Export the model as a folder: --to hf."
        )
    problems = list(_differences(shape, found))
    if problems:
        raise UsageError(
            f"llama.cpp would not compute this {shape.family} model as it was trained: "
            f"{'; '.join(problems)}. Export it as a folder: --to hf."
        )
    return found


def _differences(shape: ModelShape, architecture: Architecture) -> list[str]:
    attending = [kind for kind in shape.kinds if kind.attention is not None]
    block = attending[0]
    problems = []
    alike = all(replace(each, mixer=block.mixer) == block for each in attending)
    if not (alike or architecture.by_layer or architecture.latents or architecture.streams):
        problems.append("its blocks differ in more than what they attend to")
    for mixer in (kind.mixer for kind in shape.kinds if kind.attention is None):
        if isinstance(mixer, GatedDelta):
            if not architecture.corrected or mixer.key_dim != mixer.value_dim:
                problems.append("its keys and values of Gated DeltaNet differ in size")
        elif not isinstance(mixer, ShortConvolution):
            if not architecture.scans:
                problems.append("some of its blocks have no attention")
        elif mixer.taps != architecture.convolved or mixer.bias:
            problems.append(f"its convolutions have {mixer.taps} taps or biases")
    if block.activation not in architecture.activations:
        known = " or ".join(sorted(architecture.activations))
        problems.append(f"its activation is {block.activation}, there it is {known}")
    logits = 1.0 if architecture.logit_scale or architecture.folded else shape.logit_scale
    if (logits, shape.residual_scale) != (1.0, 1.0) and not architecture.multipliers:
        problems.append("it has multipliers of its own")
    if block.parallel and not architecture.parallel:
        problems.append("both halves of a block read the same input")
    capped = any(rule.softcap is not None for rule in shape.attention)
    if capped != architecture.softcaps:
        problems.append(f"its scores are {'' if capped else 'not '}capped")
    if architecture.softcaps and shape.logit_softcap is None:
        problems.append("its logits are not capped")
    linears = dict.fromkeys(linear for kind in shape.kinds for linear in kind.linears)
    biased = [x.module for x in linears if x.bias and x.role not in architecture.biases]
    if biased:
        problems.append(f"{', '.join(biased)} have biases")
    if architecture.sinks and not block.linear_by_role["o"].bias:
        problems.append("its attention has no biases")
    if architecture.corrected and not any(isinstance(x.mixer, GatedDelta) for x in shape.kinds):
        problems.append("none of its layers is Gated DeltaNet, whose sizes llama.cpp wants")
    if architecture.scans:
        problems += scan.differences(shape)
    if shape.head_bias and not architecture.head_bias:
        problems.append("its head has a bias")
    problems += _routing_differences(shape, architecture)
    if shape.tied and architecture.untied:
        problems.append("its head is its embedding")
    keys_differ = "k" in block.norm_by_role and block.kv_heads != block.heads
    if architecture.plain_heads and (block.queries != shape.hidden_size or keys_differ):
        problems.append("its heads together are not as wide as its hidden size")
    if architecture.by_layer:
        return [*problems, *by_layer.differences(shape)]
    if architecture.latents:
        problems += latent.differences(shape)
    if architecture.streams:
        problems += streams.differences(shape)
    return problems + _attention_differences(shape, architecture)


def _routing_differences(shape: ModelShape, architecture: Architecture) -> list[str]:
    if architecture.routed is not None and architecture.routed.alone:
        return list(_differences_alone(shape))
    if architecture.latents:
        return []
    block = next(kind for kind in shape.kinds if kind.attention is not None)
    return _differences_everywhere(block, architecture.routed)


def _differences_everywhere(block: BlockShape, routed: Routed | None) -> list[str]:
    rule = block.experts
    if rule is None or routed is None:
        alike = rule is None and (routed is None or routed.apart)
        return [] if alike else ["its MLPs are experts in some blocks, or in none"]
    problems = []
    if rule.normalised != routed.normalised:
        problems.append(
            f"the weights of its experts do {'not ' * (not rule.normalised)}add up to 1"
        )
    if rule.clamp != routed.clamp:
        problems.append("its experts clamp gate and up within other limits")
    beside = routed.shared or routed.apart or routed.ungated
    if (rule.shared_gate is not None) != routed.shared or block.shared != beside:
        problems.append("its MLP for all tokens is there otherwise")
    return problems


def _differences_alone(shape: ModelShape) -> Iterator[str]:
    """Yield what differs where experts are a block's only half."""
    rules = [kind.experts for kind in shape.kinds if kind.feeds]
    if None in rules:
        yield "some of its layers have an MLP, others experts"
    if any(rule.groups > 1 for rule in rules if rule is not None):
        yield "its experts are chosen in groups"


def _attention_differences(shape: ModelShape, architecture: Architecture) -> list[str]:
    problems = []
    for layer, attention in enumerate(shape.attention):
        windowed = architecture.windowed(layer)
        if architecture.window_pattern is not None and windowed != (attention.window is not None):
            has = "has no window" if windowed else "has a window"
            problems.append(f"layer {layer} {has}")
        elsewhere = shape.positions is not None or bool(attention.slopes)
        rotates = not elsewhere and architecture.rotates(layer)
        told = architecture.rotation == "told"
        if not told and rotates != (attention.rotary is not None):
            has = "does not rotate" if rotates else "rotates"
            problems.append(f"layer {layer} {has}")
    if any(rule.interleaved for rule in shape.rotaries) and not architecture.neighbours_rotate:
        problems.append("neighbouring channels rotate together")
    if any(rule.growth for rule in shape.rotaries):
        problems.append("its queries grow with the position")
    rules_of = [(rule, kind.heads) for kind in shape.kinds if (rule := kind.attention) is not None]
    if any(rule.slopes not in ((), slopes(heads)) for rule, heads in rules_of):
        problems.append("its scores fall otherwise with the distance")
    told = architecture.rotation == "told"
    rules = {(a.rotary, a.window) for a in shape.attention if told or a.rotary is not None}
    most = 2 if architecture.has_windows else 1
    if len({rotary for rotary, _ in rules}) > most:
        problems.append("its layers rotate in different ways")
    return problems
