"""The vocabulary of blocks: every tensor of one as data.

Blocks are described by *roles*, so that one forward pass serves every architecture:

    x = x + attention_output_norm(mixer(attention_input_norm(x)))
    x = x + mlp_output_norm(mlp(mlp_input_norm(x)))
    x = x + per_layer_norm(per_layer_out(activation(per_layer_gate(x)) * own input of the layer))
    x = scalar * x

The mixer is attention in most blocks; :mod:`edgetune.network.mixers` has the others.

A role that an architecture does not have is left out and acts as the identity. With
``parallel`` (GPT-NeoX) both halves read the same ``x``, through one norm where there is no
``mlp_input`` (Cohere).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, get_args

from edgetune.altup import AltUp
from edgetune.expert_shape import Experts, RoutingTensor
from edgetune.mixer import Attention, Mixer, MixerTensor, Recurrent, xielu_tensors

LinearRole = Literal[
    "q", "k", "v", "qkv", "o", "q_a", "q_b", "kv_a", "kv_b",
    "gate", "up", "gate_up", "down",
    "per_layer_gate", "per_layer_out", "laurel_left", "laurel_right",
]  # fmt: skip
"""What projections are to a block; a mixer that is not attention has roles of its own."""
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"]
NormRole = Literal[
    "attention_input", "attention_output", "mlp_input", "mlp_output", "q", "k", "v",
    "per_layer", "router", "experts_input", "experts_output", "shared_output", "q_a", "kv_a",
    "altup", "laurel",
]  # fmt: skip
_LINEARS: frozenset[str] = frozenset(get_args(LinearRole))
_NORMS: frozenset[str] = frozenset(get_args(NormRole))
TensorKind = Literal[
    "embedding", "position", "linear", "bias", "norm", "mixer", "head", "router", "table",
    "projection",
]  # fmt: skip

ATTENTION_ROLES: frozenset[str] = frozenset(
    {"q", "k", "v", "qkv", "o", "q_a", "q_b", "kv_a", "kv_b"}
)
MLP_ROLES: frozenset[str] = frozenset({"gate", "up", "gate_up", "down"})
PER_LAYER_ROLES: frozenset[str] = frozenset(
    {"per_layer_gate", "per_layer_out", "laurel_left", "laurel_right"}
)
"""Projections beside attention and MLP; no group of targets has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One projection of a block; ``module`` is its path inside the block."""

    role: str
    """A :data:`LinearRole`, or one of the mixer's own."""
    module: str
    inputs: int
    outputs: int
    bias: bool = False
    scale: float = 1.0
    """What its output is multiplied by."""
    grouped: bool = True
    """Whether groups of targets have it: PEFT takes no adapter of some projections."""
    transposed: bool = False
    """Stored ``(inputs, outputs)``, as GPT-2's Conv1D does, instead of ``(outputs, inputs)``."""
    expert: int | None = None
    """The number of the expert that it belongs to, if it does to one."""
    experts: int = 0
    """Of how many experts it stands for the matrices, if it does for those of all."""

    @property
    def key(self) -> str:
        """What it is called among all matrices of the block."""
        return self.role if self.expert is None else f"{self.role}.{self.expert}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NormKind:
    """How every norm of the model computes."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0
    """Added to the stored weight: 1 for Gemma, whose weights are kept around zero."""
    groups: int = 1
    """Parts, one after another, that are each normalised on their own (root mean squares only)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """One normalisation; ``module`` is its path inside the block (or in the model)."""

    role: str
    """A :data:`NormRole`, one of the mixer's own, or outside of blocks ``embedding`` or ``final``."""
    module: str
    size: int
    bias: bool = False
    kind: NormKind | None = None
    """How it computes, if not as the model's other norms do."""
    plain: bool = False
    """It has no weight."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Its tensors."""
        own = () if self.plain else ("weight",)
        return (*own, "bias") if self.bias else own


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


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """Everything about one block but its weights; sizes are in elements.

    A block whose mixer is not attention has no heads: 0 of them. It may have one half alone: no
    mixer, or neither MLP nor experts (Nemotron-H).
    """

    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    activation: Activation
    mixer: Mixer | None
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    beside: Recurrent | None = None
    """A mixer that reads the same as attention does; what both make is added (Falcon-H1)."""
    parallel: bool = False
    interleaved_qkv: bool = False
    """The fused projection holds q, k and v head by head (GPT-NeoX), not one after another: for
    each key head first the queries that share it (Falcon)."""
    normed_after_rotation: bool = False
    """Queries and keys are normalised when they have been rotated (Hunyuan), not before."""
    experts: Experts | None = None
    """What is there in the place of the MLP, in a mixture of experts."""
    per_layer: int = 0
    """Numbers of its own that a block reads of each token besides the stream (Gemma 4)."""
    scalar: str | None = None
    """Name of a tensor of one number inside the block, by which its output is multiplied."""
    altup: AltUp | None = None
    """How the streams are moved of which it computes one (Gemma 3n); None where there is one."""
    cutoff: float | None = None
    """The MLP's gate lets through what is so many standard deviations above its mean, less that."""
    xielu: str | None = None
    """Module inside the block that holds the four numbers of its activation, if that is xIELU."""

    def __post_init__(self) -> None:
        """Refuse roles that neither a block's text nor its mixer's knows.

        Raises:
            ValueError: naming them.
        """
        mixer = self.recurrent
        linears = _LINEARS if mixer is None else _LINEARS | mixer.linear_roles
        norms = _NORMS if mixer is None else _NORMS | mixer.norm_roles
        strange = {linear.role for linear in self.linears} - linears
        strange |= {norm.role for norm in self.norms} - norms
        if strange:
            raise ValueError(f"no block has projections or norms called {sorted(strange)}")

    @cached_property
    def linear_by_role(self) -> dict[str, Linear]:
        """The projections by role."""
        return {linear.role: linear for linear in self.linears}

    @cached_property
    def expert_linears(self) -> tuple[Linear, ...]:
        """The projections of all experts, one expert after the other."""
        if self.experts is None:
            return ()
        experts = range(self.experts.number)
        return tuple(each for number in experts for each in _of_expert(self.experts, number))

    @cached_property
    def expert_stacks(self) -> tuple[Linear, ...]:
        """The projections of all experts as methods adapt them: each kind is one module.

        ``gate_up`` is what an expert's gate and up read alike, one's outputs after the other's; it
        is ``up`` where there is no gate.
        """
        rule = self.experts
        if rule is None:
            return ()
        sizes: tuple[tuple[LinearRole, int, int], ...] = (
            (rule.first_stack, rule.hidden, rule.first_outputs),
            ("down", rule.size, rule.hidden),
        )
        return tuple(
            Linear(
                role=role, module=f"{rule.stack}.{role}_proj", inputs=inputs, outputs=outputs,
                transposed=rule.transposed, experts=rule.number,
            )
            for role, inputs, outputs in sizes
        )  # fmt: skip

    @cached_property
    def feeds(self) -> bool:
        """Whether there is an MLP, or experts."""
        return self.experts is not None or "down" in self.linear_by_role

    @cached_property
    def summands(self) -> frozenset[str]:
        """The projections whose outputs are added to the block's output, and not read before.

        A sum's way back reads none of what was added.
        """
        if self.per_layer or self.scalar is not None:
            return frozenset()
        alone = {"o"} if self.attention is not None and (self.parallel or not self.feeds) else set()
        if "attention_output" in self.norm_by_role:
            alone.clear()
        if self.experts is None and "mlp_output" not in self.norm_by_role:
            alone.add("down")
        return frozenset(alone)

    @cached_property
    def shared(self) -> bool:
        """Whether there is an MLP for all tokens beside experts."""
        return self.experts is not None and "down" in self.linear_by_role

    @cached_property
    def routing_tensors(self) -> tuple[RoutingTensor, ...]:
        """The small tensors that say which experts tokens go through."""
        return () if self.experts is None else self.experts.tensors

    @cached_property
    def matrices(self) -> tuple[Linear, ...]:
        """All projections: those that methods act on, then those of the experts."""
        return (*self.linears, *self.expert_linears)

    @cached_property
    def norm_by_role(self) -> dict[str, Norm]:
        """The norms by role."""
        return {norm.role: norm for norm in self.norms}

    @property
    def attention(self) -> Attention | None:
        """The mixer, if it is attention."""
        return self.mixer if isinstance(self.mixer, Attention) else None

    @property
    def splits(self) -> bool:
        """Whether it can be computed tile by tile.

        Its mixer attends, to keys that are its own alone, or reads a few tokens before its own.
        """
        if self.beside is not None or self.altup is not None:
            return False
        match self.mixer:
            case Attention() as rule:
                return rule.source is None and not rule.lends
            case None:
                return True
            case mixer:
                return mixer.reach is not None

    @property
    def leaves(self) -> bool:
        """Whether later tiles read more of a tile than its last tokens: keys and values, a state."""
        return self.attention is not None or self.carries

    @property
    def carries(self) -> bool:
        """Whether a tile goes on from the state behind the one before."""
        return isinstance(self.mixer, Recurrent) and self.mixer.state > 0

    @property
    def reach(self) -> int:
        """Tokens before a tile that are computed with it, as its mixer reads them."""
        return self.mixer.reach or 0 if isinstance(self.mixer, Recurrent) else 0

    @property
    def recurrent(self) -> Recurrent | None:
        """The mixer that carries a state from token to token, if there is one."""
        return self.beside if isinstance(self.mixer, Attention) else self.mixer

    @property
    def mixer_tensors(self) -> tuple[MixerTensor, ...]:
        """The tensors that are neither projections nor norms.

        Those of the mixer, the scalar, the numbers of an activation.
        """
        scalar, rule = self.scalar, self.attention
        found = [] if self.recurrent is None else list(self.recurrent.tensors)
        if rule is not None and rule.sinks is not None:
            found.append(MixerTensor(role="sinks", name=rule.sinks, shape=(self.heads,)))
        if scalar is not None:
            found.append(MixerTensor(role="scalar", name=scalar, shape=(1,)))
        if self.altup is not None:
            hidden = self.linear_by_role["o"].outputs
            found += [
                MixerTensor(role=role, name=name, shape=shape)
                for role, name, shape in self.altup.tensors(hidden)
            ]
        if self.xielu is not None:
            found += xielu_tensors(self.xielu)
        return tuple(found)

    @property
    def carried(self) -> int:
        """Float32 numbers that a row in generation keeps beside keys and values."""
        return 0 if self.recurrent is None else self.recurrent.carried

    @cached_property
    def queries(self) -> int:
        """Numbers of all queries of a token."""
        return self.heads * self.head_dim

    @cached_property
    def keys(self) -> int:
        """Numbers of all keys of a token; those of all values are as many."""
        return self.kv_heads * self.head_dim

    @cached_property
    def linear_parameters(self) -> int:
        """Weights of the projections: what quantization acts on."""
        return sum(linear.inputs * linear.outputs for linear in self.matrices)

    @cached_property
    def active_parameters(self) -> int:
        """Weights of the projections that a token is multiplied with."""
        shared = sum(linear.inputs * linear.outputs for linear in self.linears)
        if self.experts is None:
            return shared
        others = self.linear_parameters - shared
        return shared + others // self.experts.number * self.experts.chosen

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(tensor.size for tensor in self.tensors("", 0))

    def tensors(self, prefix: str, layer: int) -> Iterator[TensorShape]:
        """Yield the tensors of the block of a layer, in a fixed order."""
        for norm in self.norms:
            yield from norm_tensors(prefix, norm, layer)
        for tensor in self.mixer_tensors:
            full = f"{prefix}{tensor.name}"
            yield TensorShape(name=full, shape=tensor.shape, kind="mixer", layer=layer)
        for each in self.routing_tensors:
            kind: TensorKind = "bias" if each.role == "router_bias" else "router"
            full = f"{prefix}{each.name}"
            yield TensorShape(name=full, shape=each.shape, kind=kind, layer=layer)
        for linear in self.matrices:
            size = (linear.outputs, linear.inputs)
            shape = size[::-1] if linear.transposed else size
            name = f"{prefix}{linear.module}"
            yield TensorShape(name=f"{name}.weight", shape=shape, kind="linear", layer=layer)
            if linear.bias:
                yield TensorShape(
                    name=f"{name}.bias", shape=(linear.outputs,), kind="bias", layer=layer
                )


def _of_expert(experts: Experts, number: int) -> Iterator[Linear]:
    """Yield the projections of one expert."""
    inner, wide = experts.size, experts.hidden
    for role, module in experts.projections:
        sizes = {"down": (inner, wide), "gate_up": (wide, 2 * inner)}
        inputs, outputs = sizes.get(role, (wide, inner))
        path = module.format(number)
        yield Linear(
            role=role, module=path, inputs=inputs, outputs=outputs, expert=number,
            bias=experts.biased, transposed=experts.transposed,
        )  # fmt: skip


def norm_tensors(prefix: str, norm: Norm, layer: int | None) -> Iterator[TensorShape]:
    """Yield the weight of a norm and, where it has one, its bias."""
    for name in norm.parts:
        full = f"{prefix}{norm.module}.{name}"
        yield TensorShape(name=full, shape=(norm.size,), kind="norm", layer=layer)
