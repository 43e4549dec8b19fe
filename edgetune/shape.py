"""The shape of a model: every tensor of a decoder as data, without a weight being read.

A :class:`ModelShape` is enough to count bytes, to place adapters and to run the forward pass. It
has a :class:`BlockShape` for every layer; layers that are alike share one object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from edgetune.altup import AltUp
from edgetune.block_shape import (
    ATTENTION_ROLES,
    MLP_ROLES,
    PER_LAYER_ROLES,
    Activation,
    BlockShape,
    Linear,
    LinearRole,
    Norm,
    NormKind,
    NormRole,
    TensorKind,
    TensorShape,
    norm_tensors,
)
from edgetune.expert_shape import Clamp, Experts, Fused
from edgetune.mixer import Attention, Latent, Mixer, MixerTensor, Recurrent, Rotary

__all__ = [
    "ATTENTION_ROLES",
    "MLP_ROLES",
    "PER_LAYER_ROLES",
    "Activation",
    "Attention",
    "BlockShape",
    "Clamp",
    "Experts",
    "FileFormats",
    "Fused",
    "Latent",
    "Linear",
    "LinearRole",
    "Mixer",
    "MixerTensor",
    "ModelShape",
    "Norm",
    "NormKind",
    "NormRole",
    "PerLayerInputs",
    "Published",
    "Recurrent",
    "Rotary",
    "TensorKind",
    "TensorShape",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormats:
    """Types of matrices in a file of blocks, by ggml's names; ``F16`` and the like are plain."""

    matrices: tuple[tuple[str, ...], ...]
    """By layer, those of its projections in their order."""
    embedding: str
    head: str
    """The embedding's where both are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How a checkpoint has its matrices that are not plain numbers: they are unpacked when read."""

    words: str
    """The formats, for people."""
    kept_as: str | None
    """The format of ours that takes the codes of all of them as they are."""
    vocabulary: bool
    """Whether embedding or head is among them."""
    merges_plain: bool
    """Whether a merged model has plain numbers in their place; gpt-oss's experts stay as they are."""
    unpacking_bytes: int
    """Most bytes that unpacking one takes beside its numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerInputs:
    """What makes the numbers of its own that each block reads besides the stream (Gemma 4).

    Those of a token x, of all blocks one after the other, of which each has ``size``:

        (norm(projection(embedding(x)) / sqrt(hidden size)) + sqrt(size) table[x]) / sqrt(2)

    The table is far larger than the vocabulary's: it stays in the model's file, of which rows are
    read. Nothing of it is trained.
    """

    size: int
    rows: int
    """Of the table; more than the vocabulary's do no harm, tokens beyond them read the first."""
    table: str
    projection: str
    norm: Norm
    """Of the ``size`` numbers of one block."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Everything about a decoder language model but its weights.

    Sizes are in elements. ``blocks`` has one entry a layer; equal ones become one object.
    ``block_prefix`` holds ``{}`` where the layer's number goes. Module names are those of the
    checkpoint (and so of transformers and PEFT), without the trailing ``.weight``.
    """

    family: str
    kind: Literal["decoder"] = "decoder"
    hidden_size: int
    vocabulary: int
    max_context: int
    dtype: Literal["float32", "float16", "bfloat16"]
    tied: bool
    norm: NormKind
    blocks: tuple[BlockShape, ...]
    final_norm: Norm
    embedding: str
    head: str
    block_prefix: str
    positions: str | None = None
    """Module of learned position embeddings (GPT-2): ``max_context`` rows and those before them."""
    position_offset: int = 0
    """Rows of that table before the one of the first position (OPT)."""
    embedding_norm: Norm | None = None
    """Of the input of the first block (BLOOM)."""
    head_bias: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    residual_scale: float = 1.0
    per_layer: PerLayerInputs | None = None
    """Where the numbers that blocks read besides the stream come from, if they do."""
    ahead: int = 0
    """Layers in the files behind the last one, which guess several tokens ahead: they are neither
    read nor trained."""
    tower: bool = False
    """Whether its GGUF file has what sees or hears besides, which is neither read nor trained."""
    inside: str | None = None
    """Module that holds the decoder in the class that its folder loads as, where that is a wrapper
    (a vision-language model); the names here are those of the decoder alone."""
    formats: FileFormats | None = None
    """How a GGUF file stores its matrices, if any of them is in blocks."""
    published: Published | None = None
    """How the files of a quantized checkpoint have them."""
    in_file: bool = field(default=False, compare=False)
    """Whether it is a GGUF file's, which can have multipliers of the model in its weights."""

    def __post_init__(self) -> None:
        """Let equal blocks share one object, and with it all that is computed of it."""
        first: dict[BlockShape, BlockShape] = {}
        shared = tuple(first.setdefault(block, block) for block in self.blocks)
        object.__setattr__(self, "blocks", shared)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """For each layer the first one with the same block."""
        first: dict[int, int] = {}
        return tuple(first.setdefault(id(block), layer) for layer, block in enumerate(self.blocks))

    @cached_property
    def kinds(self) -> tuple[BlockShape, ...]:
        """The blocks that differ, in the order in which they come."""
        return tuple(self.blocks[layer] for layer in dict.fromkeys(self.alike))

    @cached_property
    def reach(self) -> int:
        """Tokens before a tile that are computed with it, at most."""
        return max(block.reach for block in self.kinds)

    @cached_property
    def all_linears(self) -> tuple[Linear, ...]:
        """The projections of all kinds of blocks, equal ones once."""
        return tuple(dict.fromkeys(linear for kind in self.kinds for linear in kind.linears))

    @cached_property
    def has_experts(self) -> bool:
        """Whether any block is a mixture of experts."""
        return any(kind.experts is not None for kind in self.kinds)

    @cached_property
    def all_matrices(self) -> tuple[Linear, ...]:
        """The projections of all kinds of blocks, those of an expert for those of all of them."""
        matrices = (linear for kind in self.kinds for linear in kind.matrices)
        return tuple(dict.fromkeys(linear for linear in matrices if not linear.expert))

    @cached_property
    def all_norms(self) -> tuple[Norm, ...]:
        """The norms of all kinds of blocks, equal ones once."""
        return tuple(dict.fromkeys(norm for kind in self.kinds for norm in kind.norms))

    @property
    def attention(self) -> tuple[Attention, ...]:
        """The attention of each layer that has one."""
        return tuple(rule for block in self.blocks if (rule := block.attention) is not None)

    @cached_property
    def lenders(self) -> tuple[int, ...]:
        """The layers whose keys and values later ones read."""
        found = {rule.source for rule in self.attention if rule.source is not None}
        return tuple(sorted(found))

    def last_reader(self, layer: int) -> int:
        """Return the last layer that reads the keys and values which a layer lends."""
        return max(x for x in range(self.layers) if self.source(x) == layer)

    def source(self, layer: int) -> int | None:
        """Return the layer whose keys and values a layer reads; None if it has its own, or none."""
        rule = self.blocks[layer].attention
        return None if rule is None else rule.source

    @property
    def altup(self) -> AltUp | None:
        """How many streams pass between blocks, if not one, and how they begin and end (Gemma 3n)."""
        return self.blocks[0].altup

    @property
    def stream_size(self) -> int:
        """Numbers of a token that pass from block to block."""
        return self.hidden_size * (1 if self.altup is None else self.altup.count)

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
        return frozenset(r.original_context for r in self.rotaries if r.scaling == "longrope")

    @cached_property
    def forks(self) -> bool:
        """Whether two continuations can share what is computed of the tokens before them.

        They can where attention alone looks back, and no token's rotation depends on what follows.
        """
        alone = all(kind.recurrent is None for kind in self.kinds)
        return alone and not self.rotates_by_length

    @cached_property
    def rotaries(self) -> frozenset[Rotary]:
        """The rotations of all layers."""
        rules = [rule for kind in self.kinds if (rule := kind.attention) is not None]
        found = {x for rule in rules for x in (rule.rotary, rule.query_rotary)}
        return frozenset(rotary for rotary in found if rotary is not None)

    def reached(self, length: int) -> int:
        """Return the shortest length of a document that is rotated as one of this length is."""
        return max((change + 1 for change in self.rotation_changes if length > change), default=1)

    @property
    def embedding_tensor(self) -> str:
        """Name of the token embedding (V, D)."""
        return f"{self.embedding}.weight"

    @property
    def head_tensor(self) -> str:
        """Name of the output projection (V, D): the embedding's if they are tied."""
        return self.embedding_tensor if self.tied else f"{self.head}.weight"

    def block(self, layer: int) -> str:
        """Return the module path of a block, ending in a dot."""
        return self.block_prefix.format(layer)

    def block_tensors(self, layer: int) -> Iterator[TensorShape]:
        """Yield the tensors of one block, in a fixed order."""
        yield from self.blocks[layer].tensors(self.block(layer), layer)

    def outer_tensors(self) -> Iterator[TensorShape]:
        """Yield the tensors outside the blocks: embeddings, final norm, untied head."""
        matrix = (self.vocabulary, self.hidden_size)
        yield TensorShape(name=f"{self.embedding}.weight", shape=matrix, kind="embedding")
        if self.positions is not None:
            shape = (self.max_context + self.position_offset, self.hidden_size)
            yield TensorShape(name=f"{self.positions}.weight", shape=shape, kind="position")
        if self.embedding_norm is not None:
            yield from norm_tensors("", self.embedding_norm, None)
        yield from norm_tensors("", self.final_norm, None)
        yield from self._per_layer_tensors()
        yield from self._stream_tensors()
        if not self.tied:
            yield TensorShape(name=f"{self.head}.weight", shape=matrix, kind="head")
        if self.head_bias:
            yield TensorShape(name=f"{self.head}.bias", shape=(self.vocabulary,), kind="bias")

    def _stream_tensors(self) -> Iterator[TensorShape]:
        if self.altup is not None:
            for module in (*self.altup.entries, *self.altup.exits):
                size = (self.hidden_size, self.hidden_size)
                yield TensorShape(name=f"{module}.weight", shape=size, kind="projection")

    def _per_layer_tensors(self) -> Iterator[TensorShape]:
        own = self.per_layer
        if own is None:
            return
        width = self.layers * own.size
        table, matrix = (own.rows, width), (width, self.hidden_size)
        yield TensorShape(name=f"{own.table}.weight", shape=table, kind="table")
        yield TensorShape(name=f"{own.projection}.weight", shape=matrix, kind="projection")
        yield from norm_tensors("", own.norm, None)

    def tensors(self) -> Iterator[TensorShape]:
        """Yield every tensor of the checkpoint once (a tied head is not one)."""
        yield from self.outer_tensors()
        for layer in range(self.layers):
            yield from self.block_tensors(layer)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        inner = sum(block.parameters for block in self.blocks)
        return sum(tensor.size for tensor in self.outer_tensors()) + inner

    @cached_property
    def linear_parameters(self) -> int:
        """Weights of all blocks' projections: what quantization acts on."""
        return sum(block.linear_parameters for block in self.blocks)
