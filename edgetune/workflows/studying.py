"""Studies of trained adapters: which blocks matter, which directions are shared, how weights moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import Tensors
from edgetune.data import load_tokenizer
from edgetune.errors import UsageError
from edgetune.exporters.updates import merge_of
from edgetune.insight import Turning, by_chance, correlation, overlaps, turning, updates
from edgetune.methods.merging import LowRankUpdate, Update
from edgetune.methods.targets import Target
from edgetune.model import LocalModel, StoredTensor
from edgetune.shape import ModelShape
from edgetune.tensors.reader import read_rows
from edgetune.tensors.writer import row_spans
from edgetune.workflows.opened import Opened
from edgetune.workflows.opening import open_session
from edgetune.workflows.over import Over
from edgetune.workflows.references import Adapted, new_plan, read_adapted, read_each_adapted
from edgetune.workflows.scoring import rows_of, score

Directions = NDArray[np.float32]

SAME = 1e-3
"""Loss by which an untrained adapter may differ from none: what rounding makes of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """What rows cost where the adapter is left out of some blocks, without training again."""

    name: str
    rows: int
    base: float
    """Loss without the adapter."""
    whole: float
    """Loss with all of it."""
    edges: tuple[int, ...]
    """Where spans of blocks begin and end; the last is the number of blocks."""
    without: tuple[tuple[float | None, ...], ...]
    """Loss without the blocks from ``edges[i]`` to before ``edges[j + 1]``; None below the diagonal."""

    @property
    def thirds(self) -> tuple[float, float]:
        """By how much the loss rises without the first third of the spans, and without the last."""
        count = len(self.edges) - 1
        part = max(1, round(count / 3))
        first, last = self.without[0][part - 1], self.without[count - part][count - 1]
        assert first is not None
        assert last is not None
        return first - self.whole, last - self.whole


def ablation(
    name: str,
    data: Path,
    over: Over,
    *,
    spans: int,
    tell: Callable[[int, int], None],
) -> Ablation:
    """Return the losses on rows with an adapter left out of every span of blocks.

    ``spans`` is into how many parts the blocks are divided at most; ``tell`` is told how many of how
    many losses are there.

    Raises:
        UsageError: if there are fewer than two spans, if the method has no tensors of single blocks,
            or if it does not begin as the base.
        ModelError: if the adapter or its base is missing or damaged.
    """
    if spans < 2:
        raise UsageError(f"--spans must be 2 or more; found {spans}.")
    found = read_adapted(name, over)
    shape, trained = found.model.shape, found.adapter.tensors
    blocks = _blocks_of(trained, shape)
    if not blocks:
        raise UsageError(
            f"{found.adapter.method.kind} has no tensors of single blocks that could be left out."
        )
    opened = _opened(found, over)
    session = opened.session
    try:
        untrained = session.adapter_tensors()
        rows = rows_of(opened, data)

        def loss(tensors: Tensors | None) -> float:
            if tensors is None:
                return score(opened.base(), rows, exact_match=False).loss
            session.restore(tensors)
            return score(opened, rows, exact_match=False).loss

        base = loss(None)
        if abs(loss(untrained) - base) > SAME * max(1.0, base):
            raise UsageError(
                f"{found.adapter.method.kind} does not begin as the base model: a block "
                "without it would not be the base's. LoRA and its kin, bottleneck adapters, and "
                "methods that scale or change what the base has can be studied this way."
            )
        whole = loss(trained)
        edges = _edges(shape.layers, spans)
        count = len(edges) - 1
        without: list[list[float | None]] = [[None] * count for _ in range(count)]
        places = [(first, last) for first in range(count) for last in range(first, count)]
        for done, (first, last) in enumerate(places):
            tell(done, len(places))
            left_out = range(edges[first], edges[last + 1])
            mixed = {
                key: untrained[key] if blocks.get(key) in left_out else value
                for key, value in trained.items()
            }
            without[first][last] = loss(mixed)
        tell(len(places), len(places))
    finally:
        session.close()
    return Ablation(
        name=name,
        rows=len(rows),
        base=base,
        whole=whole,
        edges=edges,
        without=tuple(map(tuple, without)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedDirections:
    """How much of one adapter's directions another one has, by target, mean over the blocks."""

    names: tuple[str, str]
    inputs: Mapping[str, tuple[tuple[float, ...], ...]]
    """Of what is read (LoRA's A): at (i, j) the first i + 1 directions against the first j + 1."""
    outputs: Mapping[str, tuple[tuple[float, ...], ...]]
    """Of what is written (LoRA's B)."""
    chance: Mapping[str, tuple[float, float]]
    """What random directions would share, all of one adapter with all of the other: of what is read
    and of what is written."""


def shared_directions(one: str, other: str, over: Over) -> SharedDirections:
    """Return the subspace similarity of two low-rank adapters over one base.

    Raises:
        UsageError: if one is not of low rank, or they adapt no projection in common.
        ModelError: if an adapter or its base is missing or damaged.
    """
    found = read_each_adapted((one, other), over)
    shape = found[0].model.shape
    mine, theirs = (updates(each.adapter, shape) for each in found)
    if mine is None or theirs is None:
        kinds = ", ".join(each.adapter.method.kind for each in found)
        raise UsageError(f"Directions are those of low-rank updates (methods here: {kinds}).")
    common = [target for target in mine if target in theirs]
    if not common:
        raise UsageError(f"{one} and {other} adapt no projection in common.")
    read: dict[str, list[NDArray[np.float64]]] = {}
    written: dict[str, list[NDArray[np.float64]]] = {}
    for target in common:
        module = target.linear.module
        own, others = (_directions(target, each[target]) for each in (mine, theirs))
        read.setdefault(module, []).append(overlaps(own[0], others[0]))
        written.setdefault(module, []).append(overlaps(own[1], others[1]))
    chance = {
        target.linear.module: (
            by_chance(*_ranks(mine[target], theirs[target]), target.linear.inputs),
            by_chance(*_ranks(mine[target], theirs[target]), target.linear.outputs),
        )
        for target in common
    }
    return SharedDirections(
        names=(one, other),
        inputs={module: _mean(parts) for module, parts in read.items()},
        outputs={module: _mean(parts) for module, parts in written.items()},
        chance=chance,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """How an adapter moved one matrix, or those of all experts of a block."""

    layer: int
    target: str
    magnitude: float
    """Mean absolute change of a row's norm."""
    direction: float
    """Mean of ``1 - cos`` between rows before and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """How an adapter moved the base's matrices."""

    name: str
    method: str
    matrices: tuple[Moved, ...]
    correlation: float | None
    """Of magnitude and direction over all matrices: near 1 for LoRA, below 0 for full tuning (Liu et
    al. 2024, figure 2)."""


def movement(name: str, over: Over) -> Movement:
    """Return how much longer an adapter made the rows of the base's matrices, and how far it turned them.

    Raises:
        UsageError: if its method cannot be merged, or changes no matrix of a block.
        ModelError: if the adapter or its base is missing or damaged.
    """
    found = read_adapted(name, over)
    model, merge = found.model, merge_of(found.adapter, found.model)
    matrices = [
        Moved(
            layer=layer,
            target=target,
            magnitude=moved.mean_magnitude,
            direction=moved.mean_direction,
        )
        for layer in range(model.shape.layers)
        for target, moved in _moved_in(model, layer, merge.changes).items()
    ]
    if not matrices:
        raise UsageError(f"{found.adapter.method.kind} changes no matrix of a block.")
    points = [(each.magnitude, each.direction) for each in matrices]
    return Movement(
        name=name,
        method=found.adapter.method.kind,
        matrices=tuple(matrices),
        correlation=correlation(points),
    )


def _opened(found: Adapted, over: Over) -> Opened:
    """Return an adapter's base, opened with the same method untrained."""
    plan = found.plan or new_plan(found, over)
    choice = replace(plan.choice, method=found.adapter.method)
    plan = replace(plan, choice=choice)
    model = found.model
    return Opened(
        name=found.name,
        plan=plan,
        model=model,
        tokenizer=load_tokenizer(model.folder, model.shape.vocabulary),
        session=open_session(plan, model),
        method=found.adapter.method,
        prompt_cut=found.prompt_cut,
        labels=found.labels,
        label_names=found.label_names,
    )


def _blocks_of(tensors: Tensors, shape: ModelShape) -> dict[str, int]:
    """Return the block of each tensor that belongs to one."""
    prefixes = {shape.block(layer): layer for layer in range(shape.layers)}
    return {
        name: layer
        for name in tensors
        for prefix, layer in prefixes.items()
        if name.startswith(prefix)
    }


def _directions(target: Target, update: LowRankUpdate) -> tuple[Directions, Directions]:
    """Return what an update reads (R, inputs) and what it writes (R, outputs)."""
    rows = update.right, update.left.T
    return rows[::-1] if target.linear.transposed else rows


def _ranks(one: LowRankUpdate, other: LowRankUpdate) -> tuple[int, int]:
    return len(one.right), len(other.right)


def _edges(layers: int, spans: int) -> tuple[int, ...]:
    """Return where ``spans`` parts of the blocks begin, of sizes as equal as can be, and the end.

    >>> _edges(4, 8), _edges(30, 4)
    ((0, 1, 2, 3, 4), (0, 8, 15, 22, 30))
    """
    count = min(layers, spans)
    return tuple(round(layers * place / count) for place in range(count + 1))


def _mean(parts: Sequence[NDArray[np.float64]]) -> tuple[tuple[float, ...], ...]:
    """Return the mean of matrices over the ranks that all of them have."""
    rows, columns = (min(part.shape[axis] for part in parts) for axis in (0, 1))
    found = np.mean([part[:rows, :columns] for part in parts], axis=0)
    return tuple(map(tuple, found.tolist()))


def _moved_in(model: LocalModel, layer: int, changes: Mapping[str, Update]) -> dict[str, Turning]:
    """Return by target how the matrices of a block changed; the experts' are one target together."""
    block, prefix, found = model.shape.blocks[layer], model.shape.block(layer), dict[str, Turning]()
    for linear in block.matrices:
        weight = f"{prefix}{linear.module}.weight"
        if weight in changes:
            target = linear.module
            if block.experts is not None and linear.expert is not None:
                target = f"{block.experts.stack}.{block.experts.in_stack(linear.role)[0]}_proj"
            moved = _moved(model, weight, changes[weight], transposed=linear.transposed)
            found[target] = found.get(target, Turning()) + moved
    return found


def _moved(model: LocalModel, name: str, change: Update, *, transposed: bool) -> Turning:
    """Return how a matrix changed, a few of its rows at a time where its rows are outputs."""
    total = Turning()
    for before, start, stop in _pieces(model.tensors[name], whole=transposed):
        after = before.copy()
        change.apply(after, start, stop)
        total += turning(before.T, after.T) if transposed else turning(before, after)
    return total


def _pieces(stored: StoredTensor, *, whole: bool) -> Iterator[tuple[NDArray[np.float32], int, int]]:
    for start, stop in ((0, stored.shape[0]),) if whole else row_spans(stored.shape):
        yield read_rows(stored, start, stop).astype(np.float32), start, stop
