"""Which tensors a file has: each from which of the model's, in which order and form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isclose
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import UsageError
from edgetune.exporters.gguf import delta, scan, streams
from edgetune.exporters.gguf.architectures import Architecture
from edgetune.exporters.gguf.experts import Content, expert_tensors
from edgetune.exporters.gguf.metadata import rotation_tensors
from edgetune.exporters.gguf.rows import (
    ColumnsReordered,
    FirstRescaled,
    Flat,
    HeldRows,
    InRows,
    MergedRows,
    OfTokens,
    OneByTap,
    Reordered,
    Rescaled,
    Rows,
    Transposed,
)
from edgetune.exporters.updates import Merge
from edgetune.mixer import XieluRole
from edgetune.model import LocalModel, gguf_names
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.network.mixers.state_space import StateSpace
from edgetune.shape import BlockShape, Linear, ModelShape, Norm


def file_tensors(model: LocalModel, merge: Merge, architecture: Architecture) -> dict[str, Content]:
    """Return the tensors of a file by their names there, in its order; none is read yet."""
    return dict(_Layout(model, merge, architecture).tensors())


def row_order(
    shape: ModelShape, block: BlockShape, linear: Linear, architecture: Architecture
) -> NDArray[np.int64] | None:
    """Return which of the model's rows each row of a projection in the file is; None: the same.

    Layers that do not rotate are as the others: that is how conversion leaves them.
    """
    apart = not any(rotary.interleaved for rotary in shape.rotaries)
    if isinstance(block.mixer, GatedDelta):
        return delta.row_order(block.mixer, linear.role)
    if linear.role in ("q", "k") and architecture.neighbours_rotate and apart:
        return neighbours(linear.outputs, block.head_dim)
    if linear.role == "qkv" and block.interleaved_qkv:
        return one_after_another(block.heads, block.head_dim)
    return None


def neighbours(rows: int, head_dim: int) -> NDArray[np.int64]:
    """Return the order that brings channels i and i + half of every head side by side.

    >>> neighbours(4, 4).tolist()
    [0, 2, 1, 3]
    """
    by_half = np.arange(rows).reshape(-1, 2, head_dim // 2)
    order: NDArray[np.int64] = by_half.swapaxes(1, 2).reshape(-1)
    return order


def one_after_another(heads: int, head_dim: int) -> NDArray[np.int64]:
    """Return the order of all queries, keys, values from that of q, k, v head by head.

    >>> one_after_another(2, 1).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    by_head = np.arange(3 * heads * head_dim).reshape(heads, 3, head_dim)
    order: NDArray[np.int64] = by_head.swapaxes(0, 1).reshape(-1)
    return order


def query_scale(shape: ModelShape, architecture: Architecture, layer: int) -> float:
    """Return what queries are multiplied by, so that llama.cpp's scale makes the model's."""
    if architecture.multipliers:
        return 1.0
    rule = shape.blocks[layer].attention
    if rule is None:
        return 1.0
    scale = rule.scale / architecture.attention_scale(shape, layer)
    return 1.0 if isclose(scale, 1.0, rel_tol=1e-6) else scale


def arranged(
    rows: Rows, linear: Linear, layer: int, shape: ModelShape, architecture: Architecture
) -> Rows:
    """Return a projection's rows, its weight's, bias's or B's, as the file has them."""
    block = shape.blocks[layer]
    order = row_order(shape, block, linear, architecture)
    rows = rows if order is None else Reordered(rows, order)
    if linear.scale != 1.0:
        rows = Rescaled(rows, 0.0, linear.scale)
    if linear.role == "scan_in" and isinstance(block.recurrent, StateSpace):
        rows = scan.rescaled(rows, block.recurrent)
    scale = query_scale(shape, architecture, layer)
    if linear.role not in ("q", "qkv") or "q" in block.norm_by_role or scale == 1.0:
        return rows
    return FirstRescaled(rows, block.queries, scale)


def columns_arranged(rows: Rows, linear: Linear, block: BlockShape) -> Rows:
    """Return a projection's weight, or A, its columns as the file has them."""
    mixer = block.mixer
    order = delta.column_order(mixer, linear.role) if isinstance(mixer, GatedDelta) else None
    return rows if order is None else ColumnsReordered(rows, order)


def parts(
    shape: ModelShape, block: BlockShape, linear: Linear
) -> Iterator[tuple[str, NDArray[np.int64] | None]]:
    """Yield the tensors of a file that a projection is, each with its rows; None: all of them."""
    if linear.role != "gate_up" or shape.family not in gguf_names.SPLIT:
        yield gguf_names.linear_name(block, linear), None
        return
    half = linear.outputs // 2
    for place, role in enumerate(gguf_names.GATE_AND_UP):
        rows = np.arange(place * half, (place + 1) * half)
        yield gguf_names.linear_name(block, replace(linear, role=role)), rows


def own_tensor(block: BlockShape, role: str, rows: Rows) -> Rows:
    """Return a tensor that is neither a projection nor a norm as the file has it."""
    match block.recurrent:
        case GatedDelta() as mixer:
            return delta.own_tensor(mixer, role, rows)
        case StateSpace():
            return scan.own_tensor(role, rows)
    return OneByTap(rows) if role == "conv" else streams.scale_of_one(block, role, rows)


class _Layout:
    """The tensors of one model."""

    def __init__(self, model: LocalModel, merge: Merge, architecture: Architecture) -> None:
        self._model, self._merge, self._architecture = model, merge, architecture
        self._shape = model.shape
        # what llama.cpp does not scale as the model does is scaled in queries or their norm
        layers = range(self._shape.layers)
        self._query_scale = [query_scale(self._shape, architecture, layer) for layer in layers]

    def tensors(self) -> Iterator[tuple[str, Content]]:
        """Yield names and rows."""
        shape, folded = self._shape, self._architecture.folded
        embedding = self._source(f"{shape.embedding}.weight")
        if folded and shape.embedding_scale != 1.0:
            embedding = Rescaled(embedding, 0.0, shape.embedding_scale)
        yield gguf_names.EMBEDDING, embedding
        if shape.embedding_norm is not None:
            yield from self._norm(shape.embedding_norm, "", "", 1.0)
        if shape.positions is not None:
            yield "position_embd.weight", self._source(f"{shape.positions}.weight")
        for name, values in rotation_tensors(shape).items():
            yield name, HeldRows(values)
        if shape.per_layer is not None:
            own = shape.per_layer
            table = self._source(f"{own.table}.weight")
            yield gguf_names.TABLE, OfTokens(table, shape.vocabulary)
            yield gguf_names.TABLE_PROJECTION, self._source(f"{own.projection}.weight")
            yield gguf_names.TABLE_NORM, self._source(f"{own.norm.module}.weight")
        yield from streams.outer_tensors(shape, self._source)
        for layer in range(shape.layers):
            yield from self._block(layer)
        yield from self._norm(shape.final_norm, "", "", 1.0)
        apart = folded and shape.embedding_scale != shape.logit_scale
        if not shape.tied or apart:
            head = self._source(shape.head_tensor)
            scaled = folded and shape.logit_scale != 1.0
            yield gguf_names.HEAD, Rescaled(head, 0.0, shape.logit_scale) if scaled else head
        if shape.head_bias:
            yield gguf_names.HEAD_BIAS, self._source(f"{shape.head}.bias")

    def _block(self, layer: int) -> Iterator[tuple[str, Content]]:
        shape, prefix, target = self._shape, self._shape.block(layer), f"blk.{layer}."
        block = shape.blocks[layer]
        for norm in (each for each in block.norms if not each.plain):
            scale = self._query_scale[layer] if norm.role == "q" else 1.0
            yield from self._norm(norm, prefix, target, scale)
        for tensor in block.mixer_tensors:
            if tensor.role in get_args(XieluRole):  # which the metadata have
                continue
            rows = self._source(f"{prefix}{tensor.name}")
            name = gguf_names.mixer_name(block, tensor)
            yield f"{target}{name}", own_tensor(block, tensor.role, rows)
        for linear in block.linears:
            yield from self._linear(linear, layer, prefix, target)
        if self._architecture.streams:
            yield from streams.unread_keys(block, target)
        for each in block.routing_tensors:
            rows = self._source(f"{prefix}{each.name}")
            rows = Flat(rows) if each.role == "shared_gate" else rows
            yield f"{target}{gguf_names.ROUTING[each.role]}", rows
        yield from expert_tensors(block, self._source, prefix, target)

    def _norm(
        self, norm: Norm, prefix: str, target: str, scale: float
    ) -> Iterator[tuple[str, Rows]]:
        names = {x: f"{target}{gguf_names.norm_tensor(self._shape, norm, x)}" for x in norm.parts}
        source, kind = f"{prefix}{norm.module}", norm.kind or self._shape.norm
        weight = self._source(f"{source}.weight")
        if norm.role == "scan":
            weight = InRows(weight, norm.size // kind.groups)
        plain = (scale, kind.offset) == (1.0, 0.0)
        yield names["weight"], weight if plain else Rescaled(weight, kind.offset, scale)
        if norm.bias:
            yield names["bias"], self._source(f"{source}.bias")

    def _linear(
        self, linear: Linear, layer: int, prefix: str, target: str
    ) -> Iterator[tuple[str, Rows]]:
        block = self._shape.blocks[layer]
        source = f"{prefix}{linear.module}"
        weight = self._source(f"{source}.weight")
        weight = Transposed(weight) if linear.transposed else weight
        weight = self._arranged(columns_arranged(weight, linear, block), linear, layer)
        biased = linear.bias or f"{source}.bias" in self._merge.added
        for name, rows in parts(self._shape, block, linear):
            full = f"{target}{name}"
            yield f"{full}.weight", weight if rows is None else Reordered(weight, rows)
            if biased:
                self._require_bias(linear)
                bias = self._arranged(self._source(f"{source}.bias"), linear, layer)
                yield f"{full}.bias", bias if rows is None else Reordered(bias, rows)

    def _require_bias(self, linear: Linear) -> None:
        if linear.role not in self._architecture.biases:
            without = self._merge.without
            train = "" if without is None else f", or train with {without}"
            raise UsageError(
                f"llama.cpp's {self._architecture.name} has no biases for {linear.module}, which "
                f"this run trained. Export the model as a folder (--to hf){train}."
            )

    def _arranged(self, rows: Rows, linear: Linear, layer: int) -> Rows:
        return arranged(rows, linear, layer, self._shape, self._architecture)

    def _source(self, name: str) -> Rows:
        added = self._merge.added.get(name)
        if added is not None:
            return HeldRows(added)
        return MergedRows(self._model.tensors[name], self._merge.changes.get(name))
