"""The vocabulary of models: every tensor of a decoder as data, without a weight being read.

A :class:`ModelShape` is enough to count bytes, to place adapters and to run the forward pass.
Blocks are described by *roles*, so that one forward pass serves every architecture:

    x = x + attention_output_norm(attention(attention_input_norm(x)))
    x = x + mlp_output_norm(mlp(mlp_input_norm(x)))

A role that an architecture does not have is left out and acts as the identity. With
``parallel`` (GPT-NeoX) both halves read the same ``x``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

LinearRole = Literal["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down"]
NormRole = Literal["attention_input", "attention_output", "mlp_input", "mlp_output", "q", "k"]
TensorKind = Literal["embedding", "position", "linear", "bias", "norm", "head"]

ATTENTION_ROLES: frozenset[str] = frozenset({"q", "k", "v", "qkv", "o"})
MLP_ROLES: frozenset[str] = frozenset({"gate", "up", "gate_up", "down"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One projection of a block; ``module`` is its path inside the block."""

    role: LinearRole
    module: str
    inputs: int
    outputs: int
    bias: bool = False
    transposed: bool = False
    """Stored ``(inputs, outputs)``, as GPT-2's Conv1D does, instead of ``(outputs, inputs)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """One normalisation; ``module`` is its path inside the block (or in the model)."""

    role: NormRole | Literal["final"]
    module: str
    size: int
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NormKind:
    """How every norm of the model computes."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0
    """Added to the stored weight: 1 for Gemma, whose weights are kept around zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Rotary position embedding with its base frequency and its scaling rule."""

    theta: float
    dimensions: int
    """Leading channels of a head that rotate; the rest pass unchanged."""
    scaling: Literal["none", "linear", "llama3", "longrope", "yarn"] = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    """Multiplies cosine and sine (longrope, yarn)."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What the attention of one layer does besides its projections."""

    scale: float
    window: int | None = None
    """A token sees itself and the ``window - 1`` tokens before it; ``None`` sees all."""
    softcap: float | None = None
    """``softcap * tanh(scores / softcap)`` before the softmax (Gemma-2)."""
    rotary: Rotary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShape:
    """A tensor of the checkpoint: its full name, shape and kind."""

    name: str
    shape: tuple[int, ...]
    kind: TensorKind
    layer: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormats:
    """Types of matrices in a file of blocks, by ggml's names; ``F16`` and the like are plain."""

    matrices: tuple[tuple[str, ...], ...]
    """By layer, those of its projections in their order."""
    embedding: str
    head: str
    """The embedding's where both are one."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Everything about a decoder language model but its weights.

    Sizes are in elements. ``attention`` has one entry a layer. ``block_prefix`` holds ``{}``
    where the layer's number goes. Module names are those of the checkpoint (and so of
    transformers and PEFT), without the trailing ``.weight``.
    """

    family: str
    kind: Literal["decoder"] = "decoder"
    layers: int
    hidden_size: int
    ffn_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_context: int
    dtype: Literal["float32", "float16", "bfloat16"]
    tied: bool
    norm: NormKind
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"]
    attention: tuple[Attention, ...]
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    final_norm: Norm
    embedding: str
    head: str
    block_prefix: str
    positions: str | None = None
    """Module of learned position embeddings (GPT-2), ``max_context`` rows."""
    parallel: bool = False
    interleaved_qkv: bool = False
    """The fused projection holds q, k and v head by head (GPT-NeoX), not one after another."""
    head_bias: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    residual_scale: float = 1.0
    inside: str | None = None
    """Module that holds the decoder in the class that its folder loads as, where that is a wrapper
    (an image-and-text model); the names here are those of the decoder alone."""
    formats: FileFormats | None = None
    """How a GGUF file stores its matrices, if any of them is in blocks."""

    @cached_property
    def linear_by_role(self) -> dict[str, Linear]:
        """The block's projections by role."""
        return {linear.role: linear for linear in self.linears}

    @cached_property
    def norm_by_role(self) -> dict[str, Norm]:
        """The block's norms by role."""
        return {norm.role: norm for norm in self.norms}

    @property
    def last_length(self) -> int | None:
        """The most positions that a document can have; None where they are not a table's rows."""
        return self.max_context if self.positions else None

    @cached_property
    def rotates_by_length(self) -> bool:
        """Whether the length of a document changes the rotation of all its tokens (LongRoPE)."""
        return bool(self.rotation_changes)

    @cached_property
    def rotation_changes(self) -> frozenset[int]:
        """The lengths beyond which the rotation of a document is another one."""
        rotaries = {rule.rotary for rule in self.attention if rule.rotary is not None}
        return frozenset(r.original_context for r in rotaries if r.scaling == "longrope")

    def reached(self, length: int) -> int:
        """Return the shortest length of a document that is rotated as one of this length is."""
        return max((change + 1 for change in self.rotation_changes if length > change), default=1)

    def block(self, layer: int) -> str:
        """Return the module path of a block, ending in a dot."""
        return self.block_prefix.format(layer)

    def block_tensors(self, layer: int) -> Iterator[TensorShape]:
        """Yield the tensors of one block, in a fixed order."""
        prefix = self.block(layer)
        for norm in self.norms:
            yield from _norm_tensors(prefix, norm, layer)
        for linear in self.linears:
            size = (linear.outputs, linear.inputs)
            shape = size[::-1] if linear.transposed else size
            name = f"{prefix}{linear.module}"
            yield TensorShape(name=f"{name}.weight", shape=shape, kind="linear", layer=layer)
            if linear.bias:
                yield TensorShape(
                    name=f"{name}.bias", shape=(linear.outputs,), kind="bias", layer=layer
                )

    def outer_tensors(self) -> Iterator[TensorShape]:
        """Yield the tensors outside the blocks: embeddings, final norm, untied head."""
        matrix = (self.vocabulary, self.hidden_size)
        yield TensorShape(name=f"{self.embedding}.weight", shape=matrix, kind="embedding")
        if self.positions is not None:
            shape = (self.max_context, self.hidden_size)
            yield TensorShape(name=f"{self.positions}.weight", shape=shape, kind="position")
        yield from _norm_tensors("", self.final_norm, None)
        if not self.tied:
            yield TensorShape(name=f"{self.head}.weight", shape=matrix, kind="head")
        if self.head_bias:
            yield TensorShape(name=f"{self.head}.bias", shape=(self.vocabulary,), kind="bias")

    def tensors(self) -> Iterator[TensorShape]:
        """Yield every tensor of the checkpoint once (a tied head is not one)."""
        yield from self.outer_tensors()
        for layer in range(self.layers):
            yield from self.block_tensors(layer)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        block = sum(tensor.size for tensor in self.block_tensors(0))
        return sum(tensor.size for tensor in self.outer_tensors()) + self.layers * block

    @cached_property
    def block_linear_parameters(self) -> int:
        """Weights of one block's projections: what quantization acts on."""
        return sum(linear.inputs * linear.outputs for linear in self.linears)


def _norm_tensors(prefix: str, norm: Norm, layer: int | None) -> Iterator[TensorShape]:
    names = ("weight", "bias") if norm.bias else ("weight",)
    for name in names:
        full = f"{prefix}{norm.module}.{name}"
        yield TensorShape(name=full, shape=(norm.size,), kind="norm", layer=layer)
