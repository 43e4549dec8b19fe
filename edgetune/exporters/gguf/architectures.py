"""What llama.cpp calls each family, and how it computes it where models can differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Final, Literal

from edgetune.exporters.gguf import scan
from edgetune.shape import ATTENTION_ROLES, MLP_ROLES, Clamp, ModelShape

SILU: Final = frozenset({"silu"})
GELU: Final = frozenset({"gelu_tanh"})
RELU2: Final = frozenset({"relu2"})
XIELU: Final = frozenset({"xielu"})
EITHER_GELU: Final = frozenset({"gelu", "gelu_tanh"})
"""llama.cpp approximates both by the tangent: less than 16-bit weights change the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """How an architecture has experts: in every block, or alone in some."""

    normalised: bool
    """The weights of the chosen experts add up to one."""
    shared: bool = False
    """An MLP for all tokens stands beside them, behind a gate of its own."""
    ungated: bool = False
    """An MLP for all tokens stands beside them, without a gate."""
    apart: bool = False
    """They read the stream through a norm of their own, beside an MLP; models can do without."""
    clamp: Clamp | None = None
    """How gate and up become what is read, if not by an activation of the gate."""
    alone: bool = False
    """They are a block's only half, and none has an MLP instead; their weights are sigmoids."""


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
    rotation: Literal["always", "never", "told"] = "always"
    """Whether layers rotate at all; ``told``: the file says it of all."""
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
    scans: bool = False
    """Blocks can have Mamba-2 in place of attention, or beside it."""
    folded: bool = False
    """Multipliers of embedding, head and projections are in their weights."""
    sinks: bool = False
    """Scores have sinks, and the output of attention a bias."""
    rounded_bounds: bool = False
    """Bounds of YaRN that are not whole are taken: everybody runs these models with rounded ones."""
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
    streams: bool = False
    """Has four streams; layers can read the keys of others, scores are not scaled (Gemma 3n)."""

    @property
    def has_windows(self) -> bool:
        """Whether layers can see a window of tokens alone."""
        return self.window_pattern is not None or self.by_layer or self.streams

    def windowed(self, layer: int) -> bool:
        """Whether a layer sees only the tokens of the model's window."""
        every = self.window_pattern
        return every is not None and (layer + 1) % every != 0

    def rotates(self, layer: int) -> bool:
        """Whether a layer has rotary embeddings, in a model that has them."""
        if self.rotation == "never":
            return False
        if self.windows_rotate:
            return self.windowed(layer)
        every = self.unrotated_pattern
        return every is None or (layer + 1) % every != 0

    def attention_scale(self, shape: ModelShape, layer: int) -> float:
        """What a layer's scores are multiplied by."""
        if self.by_layer or self.streams:
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
_GRANITE: Final = Architecture(
    name="granite", neighbours_rotate=True, rotation_tensor=True, multipliers=True
)
_ATTENTION: Final = frozenset({"q", "k", "v", "o"})
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
    "gemma3n_text": Architecture(name="gemma3n", activations=GELU, streams=True),
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
    "granite": _GRANITE,
    "falcon_h1": Architecture(
        name="falcon-h1", scans=True, folded=True, biases=_QKV | {"gate", "up", "down"}
    ),
    "nemotron_h": Architecture(
        name="nemotron_h", scans=True, activations=RELU2, rotation="never", biases=_ALL
    ),
    "qwen3_5_text": Architecture(name="qwen35", corrected=True),
    "qwen3_5_moe_text": Architecture(
        name="qwen35moe", corrected=True, routed=Routed(normalised=True, shared=True)
    ),
    "gpt_oss": Architecture(
        name="gpt-oss",
        window_pattern=2,
        biases=_ATTENTION,
        untied=True,
        sinks=True,
        rounded_bounds=True,
        routed=Routed(normalised=True, clamp=Clamp(limit=7.0, alpha=1.702)),
    ),
    "mixtral": replace(_LLAMA, routed=Routed(normalised=True)),
    "granitemoe": replace(_GRANITE, name="granitemoe", routed=Routed(normalised=True)),
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


def multiplied_into_weights(shape: ModelShape) -> bool:
    """Return whether files of a model's family have its multipliers in their weights."""
    found = ARCHITECTURES.get(shape.family)
    return found is not None and found.folded


def nemotron_h(shape: ModelShape) -> Architecture:
    """Return the architecture of a Nemotron-H model: one with experts has a name of its own."""
    found = ARCHITECTURES["nemotron_h"]
    if not shape.has_experts:
        return found
    routed = Routed(normalised=True, ungated=True, alone=True)
    return replace(found, name="nemotron_h_moe", biases=_ATTENTION, routed=routed)


def granite4(shape: ModelShape) -> Architecture:
    """Return the architecture of a Granite 4 model: without Mamba-2 it is that of Granite 3."""
    routed = Routed(normalised=True, ungated=True) if shape.has_experts else None
    name = "granitemoe" if shape.has_experts else "granite"
    if scan.mixers(shape):
        return replace(
            _GRANITE, name="granitehybrid", scans=True, rotation="told", biases=_ATTENTION,
            routed=routed,
        )  # fmt: skip
    return replace(_GRANITE, name=name, routed=routed)
