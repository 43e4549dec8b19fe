"""The text of a mixture of experts: a router, and the experts that it chose for each token.

B rows, S positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune.network.ops import A, Ops
from edgetune.shape import Experts

if TYPE_CHECKING:
    from edgetune.network.block import Block


def mixture(block: Block[A], rule: Experts, x: A, stream: A) -> A:
    """Return what the experts make of x, or of the stream that it was normalised from (B, S, D).

    Gradients go to what the router reads, too.
    """
    source = stream if rule.apart else x
    weights, chosen = block.ops.route(block.norm("router", source), rule)
    read = block.norm("experts_input", source)
    out = block.ops.experts(read, weights, chosen, rule, block.own.activation)
    del read, weights, chosen
    return block.norm("experts_output", out)


def beside(ops: Ops[A], rule: Experts, x: A, shared: A, chosen: A) -> A:
    """Return what an MLP for all tokens made of x, with what the chosen experts did (B, S, D)."""
    if rule.shared_gate is not None:
        shared = ops.shared(x, shared)
    return ops.add(chosen, shared)
