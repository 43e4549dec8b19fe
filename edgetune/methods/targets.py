"""Which projections a method acts on: from what the user wrote to a list of modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from edgetune.errors import UsageError
from edgetune.shape import ATTENTION_ROLES, MLP_ROLES, Linear, ModelShape

GROUPS = {
    "all-linear": ATTENTION_ROLES | MLP_ROLES,
    "attention": ATTENTION_ROLES,
    "mlp": MLP_ROLES,
}


@dataclass(frozen=True, slots=True)
class Target:
    """One projection of one block, by its full module path."""

    module: str
    layer: int
    linear: Linear


def select(shape: ModelShape, patterns: Sequence[str], layers: int | None = None) -> list[Target]:
    """Return the projections that any pattern names, block by block.

    A pattern is a group (``all-linear``, ``attention``, ``mlp``), the last part of a module's
    name (``q_proj``), or a glob over its full path (``*.layers.1?.mlp.*``). With ``layers``,
    only that many of the last blocks are taken.

    Raises:
        UsageError: naming every pattern that matches nothing, and what there is.
    """
    first = 0 if layers is None else max(0, shape.layers - layers)
    candidates = [
        Target(f"{shape.block(layer)}{linear.module}", layer, linear)
        for layer in range(first, shape.layers)
        for linear in shape.linears
    ]
    unmatched = [p for p in patterns if not any(_matches(p, c) for c in candidates)]
    if unmatched or not patterns:
        names = ", ".join(_last(linear.module) for linear in shape.linears)
        raise UsageError(
            f"No projection of this {shape.family} model is named {', '.join(unmatched) or '()'}. "
            f"It has {names}; the groups are {', '.join(GROUPS)}."
        )
    return [c for c in candidates if any(_matches(p, c) for p in patterns)]


def names(shape: ModelShape, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return patterns with groups written out as module names, as PEFT's configuration wants."""
    written: dict[str, None] = {}
    for pattern in patterns:
        roles = GROUPS.get(pattern)
        members = [_last(x.module) for x in shape.linears if roles is not None and x.role in roles]
        written |= dict.fromkeys(members or [pattern])
    return tuple(written)


def _matches(pattern: str, target: Target) -> bool:
    if pattern in GROUPS:
        return target.linear.role in GROUPS[pattern]
    if pattern in (target.module, target.linear.module, _last(target.linear.module)):
        return True
    return any(mark in pattern for mark in "*?[") and fnmatchcase(target.module, pattern)


def _last(module: str) -> str:
    return module.rsplit(".", 1)[-1]
