"""Which projections a method acts on: from what the user wrote to a list of modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from edgetune.errors import UsageError
from edgetune.shape import (
    ATTENTION_ROLES,
    MLP_ROLES,
    PER_LAYER_ROLES,
    BlockShape,
    Linear,
    ModelShape,
    Norm,
)

GROUPS: Final[Mapping[str, frozenset[str] | None]] = {
    "all-linear": None,
    "attention": ATTENTION_ROLES,
    "mlp": MLP_ROLES,
    "q+v": frozenset({"q", "v", "qkv", "q_b", "kv_b"}),
    "keys-values": frozenset({"k", "v", "qkv", "kv_b"}),
    "mlp-output": frozenset({"down"}),
}
"""Roles by the names of groups; None: all, those of the mixer too, but what no group has."""

EXPERTS: Final = "experts"
"""The group of all experts' projections. A pattern without this word names none of them."""


@dataclass(frozen=True, slots=True)
class Target:
    """One projection of one block, or those of all its experts, by its full module path."""

    module: str
    layer: int
    linear: Linear


def select(
    shape: ModelShape,
    patterns: Sequence[str],
    layers: int | None = None,
    *,
    with_experts: bool = False,
) -> list[Target]:
    """Return the projections that any pattern names, block by block.

    A pattern is a group (``all-linear``, ``attention``, ``mlp``, ``q+v``), the last part of a
    module's name (``q_proj``), or a glob over its full path (``*.layers.1?.mlp.*``). With
    ``layers``, only that many of the last blocks are taken. ``with_experts``: those of experts are
    among them, if a pattern has that word. Where a model has experts, a group stands for what there
    is of it beside another pattern.

    Raises:
        UsageError: naming every pattern that matches nothing, and what there is.
    """
    candidates = [
        Target(f"{shape.block(layer)}{linear.module}", layer, linear)
        for layer in last_blocks(shape, layers)
        for linear in _candidates(shape.blocks[layer], with_experts=with_experts)
    ]
    unmatched = [p for p in patterns if not any(matches(p, c) for c in candidates)]
    chosen = [c for c in candidates if any(matches(p, c) for p in patterns)]
    if shape.has_experts and chosen:
        unmatched = [p for p in unmatched if p not in GROUPS]
    if unmatched or not patterns:
        named = [c.linear for c in candidates if not c.linear.experts]
        names = ", ".join(dict.fromkeys(_last(linear.module) for linear in named))
        where = "" if layers is None else f"in the blocks of --layers {layers} "
        frozen = f" {_of_experts(with_experts=with_experts)}" if shape.has_experts else ""
        raise UsageError(
            f"No projection {where}of this {shape.family} model is named "
            f"{', '.join(unmatched) or '()'}. There are {names}; the groups are {', '.join(list(GROUPS)[:3])} "
            f"and others (docs/methods.md).{frozen}"
        )
    return chosen


def _candidates(block: BlockShape, *, with_experts: bool) -> tuple[Linear, ...]:
    return block.linears + (block.expert_stacks if with_experts else ())


def _of_experts(*, with_experts: bool) -> str:
    """Say how the MLPs of a mixture are adapted, if at all."""
    if with_experts:
        return "Its MLPs are experts: --targets experts adapts them."
    return "Its MLPs are experts, which stay frozen but with --method lora or lora-fa."


def last_blocks(shape: ModelShape, count: int | None) -> range:
    """Return the last ``count`` blocks, all if None."""
    return range(0 if count is None else max(0, shape.layers - count), shape.layers)


def norms(shape: ModelShape, layers: int | None, *, final: bool = True) -> list[tuple[str, Norm]]:
    """Return the norms of the last blocks, and the final one, with their full module paths."""
    found = [
        (f"{shape.block(layer)}{norm.module}", norm)
        for layer in last_blocks(shape, layers)
        for norm in shape.blocks[layer].norms
    ]
    if final:
        found.append((shape.final_norm.module, shape.final_norm))
    return [(path, norm) for path, norm in found if not norm.plain]


def select_norms(
    shape: ModelShape, patterns: Sequence[str], layers: int | None
) -> list[tuple[str, Norm]]:
    """Return those of :func:`norms` that any pattern names: ``all``, names or globs.

    Raises:
        UsageError: naming every pattern that matches nothing, and what there is; or if no norm has
            a weight.
    """
    found = norms(shape, layers)
    unmatched = [p for p in patterns if not any(_named(p, module) for module, _ in found)]
    if not found:
        raise UsageError(f"The norms of this {shape.family} model have no weights to train.")
    if unmatched or not patterns:
        names = ", ".join(dict.fromkeys(_last(module) for module, _ in found))
        raise UsageError(
            f"No norm of this {shape.family} model is named {', '.join(unmatched) or '()'}. "
            f"It has {names}."
        )
    return [(module, norm) for module, norm in found if any(_named(p, module) for p in patterns)]


def _named(pattern: str, module: str) -> bool:
    return pattern in {"all", module, _last(module)} or _globs(pattern, module)


def biased_norms(shape: ModelShape, layers: int | None) -> list[tuple[str, Norm]]:
    """Return those of :func:`norms` that have a bias."""
    return [(module, norm) for module, norm in norms(shape, layers) if norm.bias]


def names(shape: ModelShape, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return patterns with groups written out as module names, as PEFT's configuration wants."""
    written: dict[str, None] = {}
    for pattern in patterns:
        in_group = pattern in GROUPS
        members = [_last(x.module) for x in shape.all_linears if in_group and _grouped(pattern, x)]
        written |= dict.fromkeys(members or [pattern])
    return tuple(written)


def matches(pattern: str, target: Target) -> bool:
    """Return whether a pattern of :func:`select` names a projection."""
    if target.linear.experts:
        return _names_experts(pattern, target)
    if pattern in GROUPS:
        return _grouped(pattern, target.linear)
    if pattern in (target.module, target.linear.module, _last(target.linear.module)):
        return True
    return _globs(pattern, target.module)


def _grouped(group: str, linear: Linear) -> bool:
    """Return whether a projection belongs to a group."""
    roles = GROUPS[group]
    there = linear.role not in PER_LAYER_ROLES if roles is None else linear.role in roles
    return there and linear.grouped


def _names_experts(pattern: str, target: Target) -> bool:
    """Return whether a pattern names a projection of all experts, by a part of its path or a glob."""
    if EXPERTS not in pattern:
        return False
    ending = f".{target.module}".endswith(f".{pattern}")
    return pattern == EXPERTS or ending or _globs(pattern, target.module)


def _globs(pattern: str, module: str) -> bool:
    return any(mark in pattern for mark in "*?[") and fnmatchcase(module, pattern)


def _last(module: str) -> str:
    return module.rsplit(".", 1)[-1]
