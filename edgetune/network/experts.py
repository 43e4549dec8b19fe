"""The text of a mixture of experts: a router, and the experts that it chose for each token.

B rows, S positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune.network.ops import A, ExpertUpdates, Ops
from edgetune.shape import Experts

if TYPE_CHECKING:
    from edgetune.network.block import Block


def mixture(block: Block[A], rule: Experts, x: A, stream: A) -> A:
    """Return what the experts make of x, or of the stream that it was normalised from (B, S, D)."""
    out = block.method.experts(block, rule, stream if rule.apart else x)
    return block.norm("experts_output", out)


def chosen_experts(block: Block[A], rule: Experts, x: A, updates: ExpertUpdates[A]) -> A:
    """Return what the experts make of x (B, S, D) that the router chooses for it.

    Gradients go to what the router reads, too.
    """
    weights, chosen = block.ops.route(block.norm("router", x), rule)
    read = block.norm("experts_input", x)
    return block.ops.experts(read, weights, chosen, rule, block.own.activation, updates)


def beside(ops: Ops[A], rule: Experts, x: A, shared: A, chosen: A) -> A:
    """Return what an MLP for all tokens made of x, with what the chosen experts did (B, S, D)."""
    if rule.shared_gate is not None:
        shared = ops.shared(x, shared)
    return ops.add(chosen, shared)
