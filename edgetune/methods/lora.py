"""LoRA and its kin: ``h = W x + scale * B A x`` (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import ZEROS, Initial, Normal, Principal, Uniform
from edgetune.methods.knobs import dropout_knob, layers_knob, targets_knob
from edgetune.methods.patterns import entries, refuse_unmatched, value_of
from edgetune.methods.targets import Target, select
from edgetune.methods.whole_modules import NORMS, WithModules
from edgetune.network.experts import chosen_experts
from edgetune.network.ops import A, Attended, Dropout, ExpertUpdate
from edgetune.settings.spec import MOST_RATE, Interval, knob
from edgetune.shape import Experts, Linear, ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Changes, LowRankUpdate, StoredBase, Update
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank(WithModules):
    """What LoRA and its kin share; A is (rank, inputs), B (outputs, rank).

    A projection of all experts has one pair for them: A (experts rank, inputs), B (outputs, rank
    experts), which :class:`edgetune.network.ops.ExpertUpdate` takes as they are.
    """

    with_experts: ClassVar[bool] = False
    """Whether experts can be adapted."""
    fixed: ClassVar[bool] = False
    """Whether A is a constant."""
    mergeable: ClassVar[bool] = True
    format: ClassVar[str | None] = "edgetune.adapters.lora:LoraFormat"
    peft_type: ClassVar[str | None] = "LORA"
    reads_summands: ClassVar[bool] = False

    rank: int = knob(
        16, "Rank of the update (default: by the number of rows).", interval=Interval(low=1)
    )
    alpha: float | None = knob(
        None,
        "LoRA alpha: the update is scaled by alpha / rank (default: twice the rank).",
        interval=Interval(above=0),
    )
    dropout: float = dropout_knob()
    targets: tuple[str, ...] = targets_knob()
    layers: int | None = layers_knob()
    rslora: bool = knob(False, "Scale by alpha / sqrt(rank) instead of alpha / rank.")
    lora_plus: float | None = knob(
        None,
        "B's learning rate as a multiple of A's (default: the same rate).",
        interval=Interval(above=0, high=MOST_RATE),
    )
    rank_pattern: tuple[str, ...] = knob(
        (), "Ranks for individual targets; the first match counts.", metavar="NAME=RANK,…"
    )
    alpha_pattern: tuple[str, ...] = knob(
        (), "Alphas for individual targets; the first match counts.", metavar="NAME=ALPHA,…"
    )

    def __post_init__(self) -> None:
        """Refuse numbers, names and patterns that mean nothing."""
        WithModules.__post_init__(self)
        entries("rank_pattern", self.rank_pattern, whole=True)
        entries("alpha_pattern", self.alpha_pattern)

    @property
    def one_rank_because(self) -> str | None:
        """Why all targets have to have the same rank, if they have."""
        return None

    @property
    def scale(self) -> float:
        """What the update of a target without a pattern of its own is multiplied by."""
        return self.scale_at(self.rank)

    def scale_at(self, rank: int) -> float:
        """Return the scale of the update's first ``rank`` components alone."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / self._divisor(rank)

    def used(self) -> dict[str, Any]:
        """Return the settings with the alpha and the rate of B that hold."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return Method.used(self) | {"alpha": alpha, "lora_plus": self.lora_plus or 1.0}

    def rank_of(self, target: Target) -> int:
        """Return the rank of a target's update."""
        if not self.rank_pattern:
            return self.rank
        own = value_of(entries("rank_pattern", self.rank_pattern, whole=True), target)
        return self.rank if own is None else int(own)

    def alpha_of(self, target: Target) -> float:
        """Return the numerator of the scale of a target's update."""
        own = None
        if self.alpha_pattern:
            own = value_of(entries("alpha_pattern", self.alpha_pattern), target)
        if own is not None:
            return own
        return 2.0 * self.rank_of(target) if self.alpha is None else self.alpha

    def scale_of(self, target: Target) -> float:
        """Return what the update of a target is multiplied by."""
        return self.alpha_of(target) / self._divisor(self.rank_of(target))

    def evened(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[Any]]
    ) -> tuple[LowRank, dict[str, Any]]:
        """Return the same updates with one scale for all targets, which B makes up for."""
        even = tuple(
            f"{name}={self.scale * self._divisor(int(rank))!r}"
            for name, rank in entries("rank_pattern", self.rank_pattern, whole=True)
        )
        scaled = dict(tensors)
        for target in self.select(shape):
            own = self.scale_of(target)
            if own != self.scale:
                name = f"{target.module}.lora_B.weight"
                scaled[name] = scaled[name] * scaled[name].dtype.type(own / self.scale)
        return replace(self, alpha_pattern=even), scaled

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse patterns where all targets must have one rank, and modules that cannot be trained."""
        found = WithModules.refusals(self, shape, context=context, quantization=quantization)
        if (self.rank_pattern or self.alpha_pattern) and (because := self.one_rank_because):
            found.append(f"{because}. Leave out --rank-pattern and --alpha-pattern.")
        if self.dropout > 0 and self.adapts_experts(shape):
            found.append(
                "--dropout has no place in the updates of experts, as PEFT computes them: leave it "
                "out, or the experts."
            )
        if self.layers is not None and NORMS in self.modules_to_save:
            found.append(
                "--modules-to-save norms trains those of all blocks, and --layers adapts the last "
                f"{self.layers} alone: leave out one of them."
            )
        return found

    def _divisor(self, rank: int) -> float:
        return sqrt(rank) if self.rslora else rank

    def select(self, shape: ModelShape) -> list[Target]:
        """Return the adapted projections of a model."""
        targets = select(shape, self.targets, self.layers, with_experts=self.with_experts)
        for name in ("rank_pattern", "alpha_pattern"):
            if getattr(self, name):
                refuse_unmatched(name, getattr(self, name), targets)
        return targets

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return the tensors of every target, and those of the modules that are trained whole."""
        return (*_of_targets(self, shape), *self.module_tensors(shape))

    def of_target(self, target: Target) -> tuple[AdapterTensor, ...]:
        """Return the tensors of one target."""
        return self.plain(target)

    def adapts_experts(self, shape: ModelShape) -> bool:
        """Return whether experts are among the targets."""
        return any(target.linear.experts for target in self.select(shape))

    def pair(self, target: Target, a: Initial, b: Initial) -> tuple[AdapterTensor, AdapterTensor]:
        """Return A and B of one target: ``rank * (inputs + outputs)`` parameters, for each expert."""
        linear, rank = target.linear, self.rank_of(target) * max(1, target.linear.experts)
        return (
            AdapterTensor(
                name=f"{target.module}.lora_A.weight",
                shape=(rank, linear.inputs),
                initial=a,
                rescaled=False,
            ),
            AdapterTensor(
                name=f"{target.module}.lora_B.weight",
                shape=(linear.outputs, rank),
                initial=b,
                rate=1.0 if self.lora_plus is None else self.lora_plus,
                rescaled=True,
            ),
        )

    @property
    def draws(self) -> bool:
        """Whether a mask is drawn in training."""
        return self.dropout > 0

    def scale_at_place(self, block: Block[A], linear: Linear) -> float:
        """Return what the update of a projection is multiplied by."""
        if not self.rank_pattern and not self.alpha_pattern:
            return self.scale
        return self.scale_of(Target(block.module(linear), block.layer or 0, linear))

    def experts(self, block: Block[A], own: Adapted[A], rule: Experts, x: A) -> A:
        """Return what the chosen experts make of x (B, S, D), with the updates of their projections."""
        updates: dict[str, ExpertUpdate[A]] = {}
        for linear in block.own.expert_stacks:
            pair = pair_of(block, own, linear)
            if pair is not None:
                scale = self.scale_at_place(block, linear)
                updates[linear.role] = ExpertUpdate(*pair, scale, fixed=self.fixed)
        return chosen_experts(block, rule, x, updates)

    def dropped(self, block: Block[A], own: Adapted[A], linear: Linear) -> Dropout | None:
        """Return what a target drops in this micro-batch."""
        return own.dropout(self.dropout, block.layer, linear.role)

    def update(self, target: Target, tensors: Mapping[str, NDArray[np.float32]]) -> LowRankUpdate:
        """Return the change of a target's stored matrix."""
        from edgetune.methods.merging import LowRankUpdate

        a = tensors[f"{target.module}.lora_A.weight"]
        b = tensors[f"{target.module}.lora_B.weight"]
        left, right = (a.T, b.T) if target.linear.transposed else (b, a)
        return LowRankUpdate(left, right, self.scale_of(target))

    def updates(
        self, target: Target, tensors: Mapping[str, NDArray[np.float32]]
    ) -> dict[Target, LowRankUpdate]:
        """Return the change of each matrix that a target stands for: of every expert, or its own.

        An expert's is called by its number, gate and up together as they are in a stack.
        """
        from edgetune.methods.merging import LowRankUpdate

        count, scale = target.linear.experts, self.scale_of(target)
        if not count:
            return {target: self.update(target, tensors)}
        a = tensors[f"{target.module}.lora_A.weight"]
        b = tensors[f"{target.module}.lora_B.weight"]
        a, b = a.reshape(count, -1, a.shape[1]), b.reshape(len(b), -1, count)
        stack, _, name = target.module.rpartition(".")
        found = {}
        for expert in range(count):
            left, right = b[:, :, expert], a[expert]
            left, right = (right.T, left.T) if target.linear.transposed else (left, right)
            linear = replace(target.linear, experts=0, expert=expert)
            one = Target(f"{stack}.{expert}.{name}", target.layer, linear)
            found[one] = LowRankUpdate(left, right, scale)
        return found

    def merge(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]], base: StoredBase
    ) -> Changes:
        """Add the updates, and put trained modules in the place of the base's."""
        from edgetune.methods.merging import Changes

        changes: dict[str, Update] = {}
        for target in self.select(shape):
            for one, update in self.updates(target, tensors).items():
                changes |= dict(_stored(shape, one, update))
        return Changes(changes=changes | self.module_changes(shape, tensors))

    def plain(self, target: Target) -> tuple[AdapterTensor, AdapterTensor]:
        """Return A and B with the usual start, U(-1/sqrt(k), 1/sqrt(k)) for A with k inputs.

        That is Kaiming's with a = sqrt(5), as PEFT has it.
        """
        return self.pair(target, Uniform(1 / sqrt(target.linear.inputs)), ZEROS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora(LowRank):
    """LoRA; with ``lora_plus`` the faster B of Hayou et al. 2024, with PiSSA its start.

    PiSSA (Meng et al. 2024) starts from the largest singular components of W and keeps what W
    lacks without them: ``h = W x + scale * (B A - B0 A0) x`` leaves W alone and is the same.
    On disk it is plain LoRA of twice the rank.

    With ``attention_group`` training attends within groups of so many tokens, in half of the heads
    in others (LongLoRA's shifted sparse attention, Chen et al. 2024, section 3.2); what was
    trained attends to everything.
    """

    kind: ClassVar[str] = "lora"
    with_experts: ClassVar[bool] = True

    lora_initial: Literal["kaiming", "gaussian", "pissa"] = knob(
        "kaiming", "How A (with pissa: A and B) starts."
    )

    attention_group: int | None = knob(
        None,
        "Tokens per attention group in training; half of the heads use shifted groups (LongLoRA).",
        interval=Interval(low=2),
    )

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse groups for heads that cannot be halved."""
        found = LowRank.refusals(self, shape, context=context, quantization=quantization)
        if self.lora_initial == "pissa" and self.adapts_experts(shape):
            found.append(
                "--lora-initial pissa decomposes one matrix a target, and experts have one for each: "
                "leave it out, or the experts."
            )
        if self.attention_group is not None and any(x.kv_heads == 1 for x in shape.kinds):
            found.append(
                "--attention-group halves the key/value heads, and this model has one: leave it out."
            )
        return found

    @property
    def draws(self) -> bool:
        """Whether training computes something else than an evaluation."""
        return self.dropout > 0 or self.attention_group is not None

    def attend(self, block: Block[A], own: Adapted[A], attended: Attended[A]) -> A:
        """Return the output of attention, in training within groups if there are any."""
        ops, size, half = block.ops, self.attention_group, block.own.kv_heads // 2
        if size is None or not own.training:
            return ops.attend(attended)
        early = ops.in_groups(ops.some_heads(attended, slice(0, half)), size, late=False)
        out = ops.attend(early)
        late = ops.in_groups(ops.some_heads(attended, slice(half, None)), size, late=True)
        return ops.heads_together([out, ops.attend(late)])

    @property
    def one_rank_because(self) -> str | None:
        """Why all targets have to have the same rank, if they have."""
        return "PiSSA starts all targets at one rank" if self.lora_initial == "pissa" else None

    def project(self, block: Block[A], own: Adapted[A], linear: Linear, x: A) -> A:
        """Return the projection, with the update where it is a target; of PiSSA less its start."""
        ops, pair = block.ops, pair_of(block, own, linear)
        if pair is None:
            return ops.linear(linear.role, x)
        scale, dropout = self.scale_at_place(block, linear), self.dropped(block, own, linear)
        y = ops.lora_linear(linear.role, x, *pair, scale, dropout)
        if self.lora_initial != "pissa":
            return y
        module = block.module(linear)
        a = own.tensors[constant(f"{module}.lora_A.weight")]
        b = own.tensors[constant(f"{module}.lora_B.weight")]
        return ops.subtract(y, ops.low_rank(x, a, b, scale, dropout))

    def on_disk(self) -> Lora:
        """Return LoRA without a special start."""
        if self.lora_initial != "pissa":
            return replace(self, attention_group=None)
        rank = 2 * self.rank
        alpha = self.scale * (sqrt(rank) if self.rslora else rank)
        return replace(self, rank=rank, alpha=alpha, lora_initial="kaiming", attention_group=None)

    def fold(self, shape: ModelShape, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return A and B; of PiSSA ``[A; A0]`` and ``[B, -B0]``."""
        if self.lora_initial != "pissa":
            return dict(tensors)
        import numpy as np

        folded = {x.name: tensors[x.name] for x in self.module_tensors(shape)}
        for target in self.select(shape):
            a, b = f"{target.module}.lora_A.weight", f"{target.module}.lora_B.weight"
            folded[a] = np.concatenate([tensors[a], tensors[constant(a)]])
            folded[b] = np.concatenate([tensors[b], -tensors[constant(b)]], axis=1)
        return folded

    def of_target(self, target: Target) -> tuple[AdapterTensor, ...]:
        """Return A and B, with PiSSA followed by their constants."""
        match self.lora_initial:
            case "kaiming":
                return self.plain(target)
            case "gaussian":
                return self.pair(target, Normal(1 / self.rank), ZEROS)
            case "pissa":
                weight = f"{target.module}.weight"
                right = Principal(weight, "right", self.scale)
                left = Principal(weight, "left", self.scale)
                pair = self.pair(target, right, left)
                return pair + tuple(
                    replace(tensor, name=constant(tensor.name), trained=False) for tensor in pair
                )


def _stored(
    shape: ModelShape, target: Target, update: LowRankUpdate
) -> Iterator[tuple[str, LowRankUpdate]]:
    """Yield the tensors of the model that are a target's matrix, with the change of each."""
    rule, linear = shape.blocks[target.layer].experts, target.linear
    if rule is None or linear.expert is None:
        yield f"{target.module}.weight", update
        return
    for role, module in rule.projections:
        stack, outputs = rule.in_stack(role)
        if stack == linear.role:
            left, right = update.left, update.right
            if linear.transposed:
                right = right[:, outputs]
            else:
                left = left[outputs]
            name = f"{shape.block(target.layer)}{module.format(linear.expert)}.weight"
            yield name, replace(update, left=left, right=right)


def pair_of(block: Block[A], own: Adapted[A], linear: Linear) -> tuple[A, A] | None:
    """Return A (R, inputs) and B (outputs, R) of a projection, if it is a target."""
    module = block.module(linear)
    a = own.tensors.get(f"{module}.lora_A.weight")
    return None if a is None else (a, own.tensors[f"{module}.lora_B.weight"])


def constant(name: str) -> str:
    """Return the name of the constant copy of a PiSSA tensor's start."""
    return f"{name}.start"


@lru_cache(maxsize=4)
def _of_targets(lora: Lora, shape: ModelShape) -> tuple[AdapterTensor, ...]:
    """Return the tensors of all targets; a plan asks for them a dozen times."""
    return tuple(x for target in lora.select(shape) for x in lora.of_target(target))
