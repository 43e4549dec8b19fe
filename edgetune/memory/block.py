"""A block as an engine computes it, with what a method adds, and the places where it may.

Its passes are followed in :mod:`~edgetune.memory.forward` and :mod:`~edgetune.memory.backward`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.products import Product
from edgetune.methods.base import Footprint, Ranks
from edgetune.shape import BlockShape, Linear, NormKind

READING: frozenset[str] = frozenset(
    {"q", "k", "v", "qkv", "conv_in", "delta_qkv", "delta_b", "delta_a"}
)
ATTEND: frozenset[str] = frozenset({"attend"})
GATE: frozenset[str] = frozenset({"delta_z"})
"""What gates the output of a mixer."""
OUTPUT: frozenset[str] = frozenset({"o", "conv_out", "delta_out", "attention"})
LENT: frozenset[str] = frozenset({"k", "v"})
"""What blocks that read keys and values of others do not have."""
GATES: frozenset[str] = frozenset({"gate", "up", "gate_up"})
DOWN: frozenset[str] = frozenset({"down"})
PER_LAYER: frozenset[str] = frozenset({"per_layer_gate", "per_layer_out"})
FIRST_HALF: tuple[frozenset[str], ...] = (READING, ATTEND, GATE, OUTPUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block as an engine computes it, with what a method adds."""

    shape: BlockShape
    hidden_size: int
    norm: NormKind
    ranks: Ranks
    footprint: Footprint
    rows: BatchShape
    quantized: bool
    goes_on: bool
    """Whether the gradient of the block's input is wanted: not in the first adapted block."""

    def product(self, linear: Linear) -> Product:
        """Return a projection with its update's rank."""
        rank = dict(self.ranks).get(linear.role, 0)
        trained = linear.role in self.footprint.matrices
        return Product(
            inputs=linear.inputs,
            outputs=linear.outputs,
            rank=rank,
            quantized=self.quantized and not trained,
            trained=trained,
            fixed=linear.role in self.footprint.fixed,
            made=linear.role in self.footprint.made,
        )

    def linear(self, role: str) -> Product | None:
        """Return the projection of a role, if the block has it."""
        found = self.shape.linear_by_role.get(role)
        return None if found is None else self.product(found)

    def saves_input(self, roles: frozenset[str]) -> bool:
        """Tell whether the input of any of these projections is kept."""
        return bool(self.adapted & roles)

    @property
    def adapted(self) -> frozenset[str]:
        """Roles of the projections whose gradient reads their input."""
        updated = frozenset(role for role, _ in self.ranks) - self.footprint.fixed
        besides = updated | self.footprint.matrices
        return besides | (
            GATES if self.footprint.sublayers and self.footprint.beside else frozenset()
        )

    @property
    def before_mlp(self) -> tuple[frozenset[str], ...]:
        """Places behind which the MLP comes."""
        return () if self.shape.parallel else FIRST_HALF

    def before(self, role: str) -> tuple[frozenset[str], ...]:
        """Return the places before a norm or a projection."""
        match role:
            case "attention_output":
                return FIRST_HALF
            case "delta":
                return READING, ATTEND
            case "o" | "conv_out" | "delta_out":
                return READING, ATTEND, GATE
            case "mlp_input" | "gate" | "up" | "gate_up":
                return self.before_mlp
            case "down":
                return *self.before_mlp, GATES
            case "mlp_output":
                return *self.before_mlp, GATES, DOWN
            case "per_layer_gate":
                return *FIRST_HALF, GATES, DOWN
            case "per_layer_out" | "per_layer":
                return *FIRST_HALF, GATES, DOWN, PER_LAYER
            case _:
                return ()

    def reached(self, *parts: frozenset[str]) -> bool:
        """Tell whether gradients are wanted behind these places of the block."""
        trained = frozenset(role for role, _ in self.ranks) | self.footprint.places
        return self.goes_on or any(trained & part for part in parts)
