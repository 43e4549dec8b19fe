"""What stands in the place of an MLP in a mixture of experts: a router and many small MLPs.

    scores = router(x)                      one number an expert, in float32
    chosen = the experts with the highest scores, the lower index first where they are equal
    output = sum of weight * expert(x) over the chosen ones

Weights are a softmax of scores, or their sigmoids; to these a correction can be added before
experts are chosen by them (DeepSeek-V3, section 2.1.2). Experts can stand in groups, of which the
best are chosen first: by their best expert, or where there are sigmoids by their two best ones.
PhiMoE's experts are chosen one by one, and each is weighed against those that are left.

The loss that balances the use of experts in pretraining is not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from edgetune.buckets import bucket

LEAST_ROWS: Final = 64
"""Rows of an expert that are computed at a time even where its usual share is less."""

USUAL_SHARES: Final = 2
"""Rows computed at a time as a multiple of an expert's share, if all were chosen equally often."""

ExpertRole = Literal["gate", "up", "gate_up", "down"]
RoutingRole = Literal[
    "router", "router_bias", "router_scale", "router_correction", "expert_scale", "shared_gate"
]


@dataclass(frozen=True, slots=True)
class RoutingTensor:
    """A small tensor that says where tokens go; ``name`` is inside the block."""

    role: RoutingRole
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """What gpt-oss has for a gate: ``(up + 1) * gate * sigmoid(alpha * gate)`` within limits.

    Gate and up are columns that alternate; the former is at most ``limit``, the latter at most so
    far from zero.
    """

    limit: float
    alpha: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """A tensor of the files (E, ...) that has all experts', those of ``roles`` after each other.

    ``name`` is inside the block; ``part`` is what it has of their projections.
    """

    name: str
    roles: tuple[ExpertRole, ...]
    part: Literal["weight", "bias"] = "weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The experts of one block: how many, which are chosen, and what each computes.

    ``projections`` are the roles of an expert's projections, each with its module inside the block,
    in which ``{}`` is the expert's number.
    """

    number: int
    chosen: int
    """Experts that a token goes through."""
    hidden: int
    size: int
    """Width of each expert's MLP."""
    router: str
    """Module of the router inside the block."""
    projections: tuple[tuple[ExpertRole, str], ...]
    normalised: bool
    """Weights add up to one: they are the softmax over the chosen scores, not over all, or sigmoids
    divided by their sum."""
    score: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    jitter: float = 0.0
    """How far below an expert's own the scores are that count in its softmax (PhiMoE): by twice as
    large a share of the larger of both at most."""
    factor: float = 1.0
    """By it are weights multiplied at last."""
    correction: str | None = None
    """Name of a tensor (E,) that is added to sigmoids by which experts are chosen, not to weights."""
    groups: int = 1
    chosen_groups: int = 1
    """Groups that a token's experts come from."""
    biased: bool = False
    """Whether the router and all projections have biases."""
    transposed: bool = False
    """As of :class:`edgetune.shape.Linear`."""
    clamp: Clamp | None = None
    """How ``gate_up`` becomes what ``down`` reads, if not by an activation of the gate."""
    fused: tuple[Fused, ...] = ()
    """Tensors of the files that have all experts at once, if they do."""
    stack: str = "mlp.experts"
    """Module inside the block that has ``gate_up_proj``, or ``up_proj``, and ``down_proj`` of all
    experts, where the model is loaded: transformers 5 has no others, whatever the files have."""

    apart: bool = False
    """Router and experts read the stream, through norms of their own if the block has such (Gemma
    4), not what the MLP for all tokens reads."""
    router_scale: str | None = None
    """Name of a tensor (D,): by it, and by 1 / sqrt(D), is multiplied what the router reads."""
    expert_scale: str | None = None
    """Name of a tensor (E,): by its expert's number is each weight multiplied at last."""
    shared_gate: str | None = None
    """Module of the score by whose sigmoid what an MLP for all tokens makes is multiplied.

    That MLP is there if the block has its projections, as other blocks have."""

    @property
    def tensors(self) -> tuple[RoutingTensor, ...]:
        """The tensors that are no projections of experts."""
        router = RoutingTensor("router", f"{self.router}.weight", (self.number, self.hidden))
        found = [router]
        if self.biased:
            found.append(RoutingTensor("router_bias", f"{self.router}.bias", (self.number,)))
        if self.router_scale is not None:
            found.append(RoutingTensor("router_scale", self.router_scale, (self.hidden,)))
        if self.correction is not None:
            found.append(RoutingTensor("router_correction", self.correction, (self.number,)))
        if self.expert_scale is not None:
            found.append(RoutingTensor("expert_scale", self.expert_scale, (self.number,)))
        if self.shared_gate is not None:
            shape = (1, self.hidden)
            found.append(RoutingTensor("shared_gate", f"{self.shared_gate}.weight", shape))
        return tuple(found)

    @property
    def gated(self) -> bool:
        """Whether a gate decides what of the up projection's output is read, as in most models."""
        return any(role in ("gate", "gate_up") for role, _ in self.projections)

    @property
    def first_stack(self) -> ExpertRole:
        """The role of the stack of all experts that reads what comes in."""
        return "gate_up" if self.gated else "up"

    @property
    def first_outputs(self) -> int:
        """How many numbers an expert makes of what comes in."""
        return 2 * self.size if self.gated else self.size

    def in_stack(self, role: str) -> tuple[str, slice]:
        """Return the role of the stack that has a projection of all experts, and its outputs there.

        >>> rule = Experts(
        ...     number=8, chosen=2, hidden=6, size=4, router="", normalised=True,
        ...     projections=(("gate", "{}.gate"), ("up", "{}.up"), ("down", "{}.down")),
        ... )
        >>> rule.in_stack("up")
        ('gate_up', slice(4, 8, None))
        """
        match role:
            case "gate":
                return "gate_up", slice(0, self.size)
            case "up" if self.gated:
                return "gate_up", slice(self.size, 2 * self.size)
        return role, slice(None)

    @property
    def best_of_group(self) -> int:
        """How many of a group's experts it is chosen by."""
        return 2 if self.score == "sigmoid" else 1

    def rows(self, tokens: int) -> int:
        """Return how many of an expert's rows are computed at a time, at most.

        >>> one = Experts(
        ...     number=128, chosen=8, hidden=2048, size=768, router="mlp.gate", projections=(),
        ...     normalised=True,
        ... )
        >>> [one.rows(tokens) for tokens in (16, 512, 4096)]
        [16, 64, 512]
        """
        share = -(-USUAL_SHARES * tokens * self.chosen // self.number)
        return min(tokens, bucket(max(LEAST_ROWS, share)))
