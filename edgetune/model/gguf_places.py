"""Where a file has what is no tensor of its own there: rows of a tensor, or of several."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Final

from edgetune.model.gguf_names import (
    EXPERTS,
    FUSED_EXPERTS,
    GATE_AND_UP,
    LINEARS,
    NORMS,
    SPLIT,
    STREAM_ENTRIES,
    STREAM_EXITS,
    linear_name,
)
from edgetune.shape import BlockShape, Linear, ModelShape
from edgetune.tensors.header import StoredTensor

_HEADS: Final = ("q", "k", "v")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows of a tensor of the file, or of the matrix that it has of one expert, or of one stream."""

    name: str
    rows: int
    of: int
    """Rows that are there in all."""
    first: int = 0
    expert: int | None = None

    def cut(self, stored: StoredTensor) -> StoredTensor:
        """Return these rows of a tensor; the tensor itself where it has others, as its shape tells."""
        matrix = stored.shape if self.expert is None else stored.shape[1:]
        experts, number = (1, 0) if self.expert is None else (stored.shape[0], self.expert)
        if not matrix or matrix[0] != self.of or number >= experts:
            return stored
        width = stored.nbytes // (experts * self.of)
        start = stored.start + (number * self.of + self.first) * width
        end = start + self.rows * width
        return replace(stored, shape=(self.rows, *matrix[1:]), start=start, end=end)


def places_of(shape: ModelShape, tensors: Container[str]) -> dict[str, tuple[Piece, ...]]:
    """Return by their names in the checkpoint where such tensors are, piece after piece."""
    return dict(_of_streams(shape)) | {
        name: pieces
        for layer, block in enumerate(shape.blocks)
        for name, pieces in _of_block(shape, block, layer, tensors)
    }


def unread(shape: ModelShape) -> frozenset[str]:
    """Return what files have of layers that read the keys and values of others: what makes these."""
    names = [f"{LINEARS['k']}.weight", f"{LINEARS['v']}.weight", f"{NORMS['k']}.weight"]
    readers = [layer for layer in range(shape.layers) if shape.source(layer) is not None]
    return frozenset(f"blk.{layer}.{name}" for layer in readers for name in names)


def _of_streams(shape: ModelShape) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    """Yield where the projections are by which streams begin and end."""
    if shape.altup is None:
        return
    size = shape.hidden_size
    for name, modules in (
        (STREAM_ENTRIES, shape.altup.entries),
        (STREAM_EXITS, shape.altup.exits),
    ):
        for number, module in enumerate(modules):
            yield f"{module}.weight", (Piece(name=name, rows=size, of=size, expert=number),)


def _of_block(
    shape: ModelShape, block: BlockShape, layer: int, tensors: Container[str]
) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    ours, before = shape.block(layer), f"blk.{layer}."
    for linear in block.expert_linears:
        for part in _parts(linear):
            yield f"{ours}{linear.module}.{part}", _of_expert(linear, part, before, tensors)
    linears = block.linear_by_role
    if shape.family in SPLIT and "gate_up" in linears:
        linear = linears["gate_up"]
        names = [linear_name(block, replace(linear, role=role)) for role in GATE_AND_UP]
        yield (
            f"{ours}{linear.module}.weight",
            _halves(linear, [f"{before}{x}.weight" for x in names]),
        )
    for part in ("weight", "bias"):
        whole = f"{before}{LINEARS['qkv']}.{part}"
        if linears.keys() >= set(_HEADS) and whole in tensors:
            yield from _fused(block, ours, whole, part)


def _parts(linear: Linear) -> tuple[str, ...]:
    return ("weight", "bias") if linear.bias else ("weight",)


def _of_expert(
    linear: Linear, part: str, before: str, tensors: Container[str]
) -> tuple[Piece, ...]:
    """Return where an expert's matrix is: files have gate and up in a tensor each, or in one."""
    number, outputs, role = linear.expert or 0, linear.outputs, linear.role
    if role == "gate_up":
        return _halves(linear, [f"{before}{EXPERTS[x]}.{part}" for x in GATE_AND_UP])
    name, fused = f"{before}{EXPERTS[role]}.{part}", f"{before}{FUSED_EXPERTS}.{part}"
    if role in GATE_AND_UP and name not in tensors and fused in tensors:
        first = GATE_AND_UP.index(role) * outputs
        piece = Piece(name=fused, rows=outputs, of=2 * outputs, first=first, expert=number)
        return (piece,)
    return (Piece(name=name, rows=outputs, of=outputs, expert=number),)


def _halves(linear: Linear, names: list[str]) -> tuple[Piece, ...]:
    """Return where the halves of gate and up are that the model has in one."""
    half = linear.outputs // 2
    return tuple(Piece(name=x, rows=half, of=half, expert=linear.expert) for x in names)


def _fused(
    block: BlockShape, ours: str, whole: str, part: str
) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    """Yield where queries, keys and values are of which a file has all in one."""
    linears = [block.linear_by_role[role] for role in _HEADS]
    first, of = 0, sum(linear.outputs for linear in linears)
    for linear in linears:
        piece = Piece(name=whole, rows=linear.outputs, of=of, first=first)
        yield f"{ours}{linear.module}.{part}", (piece,)
        first += linear.outputs
