"""What llama.cpp calls each family, and how it computes it where models can differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Final

from edgetune.errors import UsageError
from edgetune.exporters.gguf import by_layer, latent
from edgetune.model.families.bloom import slopes
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.network.mixers.short_convolution import ShortConvolution
from edgetune.shape import (
    ATTENTION_ROLES,
    MLP_ROLES,
    BlockShape,
    ModelShape,
)

SILU: Final = frozenset({"silu"})
GELU: Final = frozenset({"gelu_tanh"})
RELU2: Final = frozenset({"relu2"})
XIELU: Final = frozenset({"xielu"})
EITHER_GELU: Final = frozenset({"gelu", "gelu_tanh"})
"""llama.cpp approximates both by the tangent: less than 16-bit weights change the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """How an architecture has experts: in every block."""

    normalised: bool
    """The weights of the chosen experts add up to one."""
    shared: bool = False
    """An MLP for all tokens stands beside them, behind a gate of its own."""
    apart: bool = False
    """They read the stream through a norm of their own, beside an MLP; models can do without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture of llama.cpp."""

    name: str
    activations: frozenset[str] = SILU
    neighbours_rotate: bool = False
    """Channels 2i and 2i + 1 of a head rotate together, not i and i + half: rows move."""
    window_pattern: int | None = None
    """All layers but every so manieth have a window; None where no layer can have one."""
    softcaps: bool = False
    """Caps scores and logits always."""
    wide_scales: frozenset[int] = field(default_factory=frozenset)
    """Numbers of layers at which attention is scaled by hidden size / heads, not by head size."""
    rotation_tensor: bool = False
    """Takes Llama 3's rotation as a tensor, ``rope_freqs``."""
    unrotated_pattern: int | None = None
    """Every so manieth layer does not rotate."""
    multipliers: bool = False
    """Reads Granite's multipliers."""
    biases: frozenset[str] = frozenset()
    """Roles of the projections that can have a bias."""
    parallel: bool = False
    """Both halves of a block can read the same input."""
    windows_rotate: bool = False
    """Layers rotate if they have a window, and not otherwise."""
    logit_scale: bool = False
    """Multiplies logits."""
    head_bias: bool = False
    """The head can have a bias."""
    convolved: int | None = None
    """Taps of the short convolution that blocks can have in place of attention."""
    corrected: bool = False
    """Blocks can have Gated DeltaNet in place of attention."""
    routed: Routed | None = None
    """Its experts, if it has any."""
    untied: bool = False
    """The head has to be a matrix of its own."""
    plain_heads: bool = False
    """All heads together are as wide as the hidden size, those of keys too if they have norms."""
    by_layer: bool = False
    """Sizes are told by layer, scores are not scaled, layers can read the keys of others (Gemma 4)."""
    latents: bool = False
    """Keys and values are made of latents; the first layers have an MLP, the others experts."""

    def windowed(self, layer: int) -> bool:
        """Whether a layer sees only the tokens of the model's window."""
        every = self.window_pattern
        return every is not None and (layer + 1) % every != 0

    def rotates(self, layer: int) -> bool:
        """Whether a layer has rotary embeddings, in a model that has them."""
        if self.windows_rotate:
            return self.windowed(layer)
        every = self.unrotated_pattern
        return every is None or (layer + 1) % every != 0

    def attention_scale(self, shape: ModelShape, layer: int) -> float:
        """What a layer's scores are multiplied by."""
        if self.by_layer:
            return 1.0
        if self.latents:  # the file says what it grows by
            return shape.attention[layer].scale
        wide, block = shape.layers in self.wide_scales, shape.blocks[layer]
        return 1 / sqrt(shape.hidden_size / block.heads if wide else block.head_dim)


_ALL: Final = ATTENTION_ROLES | MLP_ROLES
_QKV: Final = frozenset({"q", "k", "v"})
_LLAMA: Final = Architecture(
    name="llama", neighbours_rotate=True, rotation_tensor=True, biases=_ALL
)
_DEEPSEEK: Final = Architecture(name="deepseek2", neighbours_rotate=True, latents=True)

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(name="qwen2", biases=_QKV),
    "qwen3": Architecture(name="qwen3"),
    "gemma": Architecture(name="gemma", activations=GELU),
    "gemma2": Architecture(
        name="gemma2",
        activations=GELU,
        window_pattern=2,
        softcaps=True,
        wide_scales=frozenset({46}),
    ),
    "gemma3_text": Architecture(
        name="gemma3", activations=GELU, window_pattern=6, wide_scales=frozenset({62})
    ),
    "gemma4_text": Architecture(
        name="gemma4", activations=GELU, by_layer=True, routed=Routed(normalised=True, apart=True)
    ),
    "gemma4_unified_text": Architecture(name="gemma4", activations=GELU, by_layer=True),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    "phi3": Architecture(name="phi3"),
    "gpt2": Architecture(name="gpt2", activations=GELU, biases=_ALL),
    "gpt_neox": Architecture(name="gptneox", activations=EITHER_GELU, parallel=True, biases=_ALL),
    "olmo2": Architecture(name="olmo2"),
    "olmo3": Architecture(name="olmo2", window_pattern=4),
    "apertus": Architecture(name="apertus", activations=XIELU, rotation_tensor=True),
    "arcee": Architecture(
        name="arcee", activations=RELU2, neighbours_rotate=True, rotation_tensor=True
    ),
    "bloom": Architecture(name="bloom", activations=GELU, biases=_ALL),
    "cohere": Architecture(
        name="command-r", neighbours_rotate=True, parallel=True, logit_scale=True
    ),
    "cohere2": Architecture(
        name="cohere2",
        neighbours_rotate=True,
        parallel=True,
        logit_scale=True,
        window_pattern=4,
        windows_rotate=True,
    ),
    "ernie4_5": Architecture(name="ernie4_5", neighbours_rotate=True),
    "exaone4": Architecture(name="exaone4"),
    "glm4": Architecture(name="glm4", neighbours_rotate=True, biases=_QKV),
    "gpt_bigcode": Architecture(name="starcoder", activations=GELU, biases=_ALL),
    "hunyuan_v1_dense": Architecture(name="hunyuan-dense"),
    "lfm2": Architecture(name="lfm2", convolved=3),
    "mpt": Architecture(name="mpt", activations=EITHER_GELU),
    "nemotron": Architecture(name="nemotron", activations=RELU2, biases=_ALL),
    "phi": Architecture(name="phi2", activations=GELU, biases=_ALL, parallel=True, head_bias=True),
    "granite": Architecture(
        name="granite", neighbours_rotate=True, rotation_tensor=True, multipliers=True
    ),
    "qwen3_5_text": Architecture(name="qwen35", corrected=True),
    "mixtral": replace(_LLAMA, routed=Routed(normalised=True)),
    "granitemoe": Architecture(
        name="granitemoe",
        neighbours_rotate=True,
        rotation_tensor=True,
        multipliers=True,
        routed=Routed(normalised=True),
    ),
    "olmoe": Architecture(
        name="olmoe", routed=Routed(normalised=False), untied=True, plain_heads=True
    ),
    "qwen2_moe": Architecture(
        name="qwen2moe",
        biases=_QKV,
        routed=Routed(normalised=False, shared=True),
        untied=True,
        plain_heads=True,
    ),
    "qwen3_moe": Architecture(name="qwen3moe", routed=Routed(normalised=True)),
    "smollm3": Architecture(name="smollm3", neighbours_rotate=True, unrotated_pattern=4),
    "stablelm": Architecture(name="stablelm", biases=_QKV),
    "starcoder2": Architecture(name="starcoder2", activations=GELU, biases=_ALL),
}
"""By family."""


NOT_WRITTEN: Final[Mapping[str, str]] = {
    "phimoe": "llama.cpp weighs its experts by one softmax, the model each by its own",
    "gemma3n_text": "its streams are not laid out for llama.cpp yet, which counts deviations over n - 1",
    "gpt_oss": "llama.cpp rounds the bounds of its rotation (YaRN), which the model does not",
    "falcon_h1": "Mamba-2 beside attention is not laid out for llama.cpp yet",
    "granitemoehybrid": "Granite 4's layers are not laid out for llama.cpp yet",
    "nemotron_h": "layers of one half are not laid out for llama.cpp yet",
    "qwen3_5_moe_text": "experts beside Gated DeltaNet are not laid out for llama.cpp yet",
}
"""Families that llama.cpp has, and why no files of theirs are made."""


def architecture_of(shape: ModelShape) -> Architecture:
    """Return llama.cpp's architecture for a model.

    Raises:
        UsageError: naming all that llama.cpp would compute otherwise.
    """
    found = ARCHITECTURES.get(shape.family)
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
    if not alike and not (architecture.by_layer or architecture.latents):
        problems.append("its blocks differ in more than what they attend to")
    for mixer in (kind.mixer for kind in shape.kinds if kind.attention is None):
        if isinstance(mixer, GatedDelta):
            if not architecture.corrected or mixer.key_dim != mixer.value_dim:
                problems.append("its keys and values of Gated DeltaNet differ in size")
        elif not isinstance(mixer, ShortConvolution):
            problems.append("some of its blocks have no attention")
        elif mixer.taps != architecture.convolved or mixer.bias:
            problems.append(f"its convolutions have {mixer.taps} taps or biases")
    if block.activation not in architecture.activations:
        known = " or ".join(sorted(architecture.activations))
        problems.append(f"its activation is {block.activation}, there it is {known}")
    logits = 1.0 if architecture.logit_scale else shape.logit_scale
    if (logits, shape.residual_scale) != (1.0, 1.0) and not architecture.multipliers:
        problems.append("it has multipliers of its own")
    if block.parallel and not architecture.parallel:
        problems.append("both halves of a block read the same input")
    capped = any(rule.softcap is not None for rule in shape.attention)
    if capped != architecture.softcaps:
        problems.append(f"its scores are {'' if capped else 'not '}capped")
    if architecture.softcaps and shape.logit_softcap is None:
        problems.append("its logits are not capped")
    biased = [x.module for x in block.linears if x.bias and x.role not in architecture.biases]
    if biased:
        problems.append(f"{', '.join(biased)} have biases")
    if shape.head_bias and not architecture.head_bias:
        problems.append("its head has a bias")
    if not architecture.latents:
        problems += _routing_differences(block, architecture.routed)
    if shape.tied and architecture.untied:
        problems.append("its head is its embedding")
    keys_differ = "k" in block.norm_by_role and block.kv_heads != block.heads
    if architecture.plain_heads and (block.queries != shape.hidden_size or keys_differ):
        problems.append("its heads together are not as wide as its hidden size")
    if architecture.by_layer:
        return [*problems, *by_layer.differences(shape)]
    if architecture.latents:
        problems += latent.differences(shape)
    return problems + _attention_differences(shape, architecture)


def _routing_differences(block: BlockShape, routed: Routed | None) -> list[str]:
    rule = block.experts
    if rule is None or routed is None:
        alike = rule is None and (routed is None or routed.apart)
        return [] if alike else ["its MLPs are experts in some blocks, or in none"]
    problems = []
    if rule.normalised != routed.normalised:
        problems.append(
            f"the weights of its experts do {'not ' * (not rule.normalised)}add up to 1"
        )
    beside = routed.shared or routed.apart
    if (rule.shared_gate is not None) != routed.shared or block.shared != beside:
        problems.append("its MLP for all tokens is there otherwise")
    return problems


def _attention_differences(shape: ModelShape, architecture: Architecture) -> list[str]:
    problems = []
    for layer, attention in enumerate(shape.attention):
        windowed = architecture.windowed(layer)
        if architecture.window_pattern is not None and windowed != (attention.window is not None):
            has = "has no window" if windowed else "has a window"
            problems.append(f"layer {layer} {has}")
        elsewhere = shape.positions is not None or bool(attention.slopes)
        rotates = not elsewhere and architecture.rotates(layer)
        if rotates != (attention.rotary is not None):
            has = "does not rotate" if rotates else "rotates"
            problems.append(f"layer {layer} {has}")
    if any(rule.interleaved for rule in shape.rotaries) and not architecture.neighbours_rotate:
        problems.append("neighbouring channels rotate together")
    if any(rule.growth for rule in shape.rotaries):
        problems.append("its queries grow with the position")
    rules_of = [(rule, kind.heads) for kind in shape.kinds if (rule := kind.attention) is not None]
    if any(rule.slopes not in ((), slopes(heads)) for rule, heads in rules_of):
        problems.append("its scores fall otherwise with the distance")
    rules = {(a.rotary, a.window) for a in shape.attention if a.rotary is not None}
    most = 1 if architecture.window_pattern is None else 2
    if len({rotary for rotary, _ in rules}) > most:
        problems.append("its layers rotate in different ways")
    return problems
