"""The text of a mixture of experts: a router, and the experts that it chose for each token.

B rows, S positions, D hidden size.
"""

from __future__ import annotations

from edgetune.network.ops import A, Ops
from edgetune.shape import Experts


def mixture(ops: Ops[A], rule: Experts, activation: str, x: A) -> A:
    """Return what the experts make of x (B, S, D): gradients go to x through the weights, too."""
    weights, chosen = ops.route(x, rule)
    return ops.experts(x, weights, chosen, rule, activation)


def beside(ops: Ops[A], rule: Experts, x: A, shared: A, chosen: A) -> A:
    """Return what an MLP for all tokens made of x, with what the chosen experts did (B, S, D)."""
    if rule.shared_gate is not None:
        shared = ops.shared(x, shared)
    return ops.add(chosen, shared)
