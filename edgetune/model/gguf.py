"""A model in a GGUF file: its shape, and where each of its tensors lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from edgetune.errors import ModelError
from edgetune.model.families import shape_of
from edgetune.model.gguf_architectures import Architecture, architecture_of, config_of
from edgetune.model.gguf_names import BESIDES, SPLIT_LATENTS, gguf_names
from edgetune.model.gguf_ollama import has_tower, translated
from edgetune.model.gguf_places import Piece, places_of, unread
from edgetune.model.gguf_source import Source
from edgetune.model.weights import listing
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.network.mixers.state_space import StateSpace
from edgetune.shape import (
    BlockShape,
    FileFormats,
    Linear,
    ModelShape,
    TensorShape,
)
from edgetune.storage import FLOAT32_BYTES, moved_in_files
from edgetune.tensors.gguf.latents import LatentTensor
from edgetune.tensors.gguf.metadata import Array
from edgetune.tensors.gguf.parts import read_parts
from edgetune.tensors.gguf.reader import GgufHeader
from edgetune.tensors.gguf.tensor import GgufTensor, RowOrder
from edgetune.tensors.gguf.types import FLOATS, QUANTIZED
from edgetune.tensors.header import StoredTensor

USABLE = frozenset({*FLOATS.values(), *QUANTIZED})


def read_model(file: Path) -> tuple[dict[str, Any], ModelShape, dict[str, GgufTensor]]:
    """Return config, shape and tensors of a file, or of several of which it is the first.

    The tensors are by the checkpoint's names.

    Raises:
        ModelError: if the file is damaged, of an architecture or in types that are not
            supported, or its tensors do not fit its metadata.
    """
    whole = read_parts(file)
    header = translated(whole)
    config = config_of(header)
    shape = replace(shape_of(config), tower=has_tower(whole))
    tensors = _checked(header, shape)
    return config, replace(shape, formats=_formats(shape, tensors), in_file=True), tensors


def _checked(header: GgufHeader, shape: ModelShape) -> dict[str, GgufTensor]:
    problems: list[str] = []
    found: dict[str, GgufTensor] = {}
    _refuse_types(header)
    architecture = architecture_of(header)
    names, places = gguf_names(shape), places_of(shape, header.tensors)
    latents = dict(_latents(header, shape, names))
    linears = {id(kind): {x.module: x for x in kind.matrices} for kind in shape.kinds}
    for tensor in shape.tensors():
        if tensor.name in latents:
            found[tensor.name] = latents[tensor.name]
            continue
        parts = _stored(header, tensor, names, places)
        if isinstance(parts, str):
            problems.append(parts)
            continue
        known = {} if tensor.layer is None else linears[id(shape.blocks[tensor.layer])]
        ours = _as_checkpoint(parts, tensor, shape, architecture, known)
        if ours.shape != tensor.shape:
            problems.append(
                f"{parts[0].name}: is {parts[0].shape}, expected {_file_shape(ours, tensor.shape)}"
            )
        found[tensor.name] = ours
    own = {piece.name for pieces in places.values() for piece in pieces}
    used = own | {name for ours, name in names.items() if ours not in places}
    parts_of_latents = {piece.name for tensor in latents.values() for piece in tensor.pieces}
    strange = header.tensors.keys() - used - parts_of_latents - BESIDES - unread(shape)
    further = _guessing(header)
    problems += [
        f"{name}: not expected" for name in sorted(strange) if not name.startswith(further)
    ]
    if problems:
        raise ModelError(
            f"The tensors in {header.file} do not fit its metadata:\n  - {listing(problems)}"
        )
    return found


def _stored(
    header: GgufHeader,
    tensor: TensorShape,
    names: Mapping[str, str],
    places: Mapping[str, tuple[Piece, ...]],
) -> tuple[StoredTensor, ...] | str:
    """Return what a file has of a tensor, piece after piece, or what is wrong with it."""
    if tensor.name not in places:
        name = names[tensor.name]
        stored = header.tensors.get(name)
        if stored is None and tensor.layer is not None:
            stored = _listed(header, name, tensor)
        return (stored,) if stored else f"{name}: missing, expected {tensor.shape}"
    pieces, found = places[tensor.name], []
    for piece in pieces:
        if piece.name not in header.tensors:
            return f"{piece.name}: missing, expected {tensor.shape}"
        found.append(piece.cut(header.tensors[piece.name]))
    if len({x.dtype for x in found}) > 1:
        types = " and ".join(x.dtype for x in found)
        return f"{' and '.join(x.name for x in pieces)}: are {types}, expected one type"
    return tuple(found)


def _guessing(header: GgufHeader) -> tuple[str, ...]:
    """Return what the names begin with in layers that guess further tokens, which stay unread."""
    source = Source(header)
    return tuple(f"blk.{layer}." for layer in range(source.layers, source.whole("block_count")))


def _latents(
    header: GgufHeader, shape: ModelShape, names: Mapping[str, str]
) -> Iterator[tuple[str, LatentTensor]]:
    """Yield the projections of latents that a file has in two tensors, by the checkpoint's names."""
    for layer, block in enumerate(shape.blocks):
        linear, rule = block.linear_by_role.get("kv_b"), block.attention
        keys, values = (header.tensors.get(f"blk.{layer}.{name}.weight") for name in SPLIT_LATENTS)
        if linear is None or rule is None or rule.latent is None or keys is None or values is None:
            continue
        name, rank = f"{shape.block(layer)}{linear.module}.weight", rule.latent.rank
        width = linear.outputs // block.heads - rule.latent.value_dim
        sizes = (block.heads * rank, width), (block.heads * rule.latent.value_dim, rank)
        if names[name] in header.tensors or not all(map(_fits, (keys, values), sizes)):
            continue
        plain = keys.dtype == values.dtype and keys.dtype in FLOATS.values()
        yield (
            name,
            LatentTensor(
                keys.file, name, keys.dtype if plain else "float32", (linear.outputs, rank),
                keys.start, keys.end, keys=_matrix(keys, sizes[0]), values=_matrix(values, sizes[1]),
                heads=block.heads,
            ),
        )  # fmt: skip


def _fits(stored: StoredTensor, size: tuple[int, int]) -> bool:
    return (prod(stored.shape[:-1]), stored.shape[-1]) == size


def _matrix(stored: StoredTensor, size: tuple[int, int]) -> GgufTensor:
    return GgufTensor(stored.file, stored.name, stored.dtype, size, stored.start, stored.end)


def _listed(header: GgufHeader, key: str, tensor: TensorShape) -> StoredTensor | None:
    """Return a number of a layer that is in a list of the metadata, if there is such a list."""
    listed = header.metadata.raw(key)
    if not isinstance(listed, Array) or listed.kind.code != "f" or tensor.layer is None:
        return None
    if tensor.size != 1 or tensor.layer >= listed.count:
        return None
    start = listed.start + FLOAT32_BYTES * tensor.layer
    return StoredTensor(
        header.metadata.file, tensor.name, "float32", tensor.shape, start, start + FLOAT32_BYTES
    )


def _refuse_types(header: GgufHeader) -> None:
    wrong = sorted({x.dtype for x in header.tensors.values() if x.dtype not in USABLE})
    if wrong:
        raise ModelError(
            f"{header.file} has tensors of type {', '.join(wrong)}, which cannot be computed with "
            f"here. Supported: {', '.join((*FLOATS, *QUANTIZED))}. Take the model in one of these."
        )


def _as_checkpoint(
    parts: tuple[StoredTensor, ...],
    tensor: TensorShape,
    shape: ModelShape,
    architecture: Architecture,
    linears: Mapping[str, Linear],
) -> GgufTensor:
    """Return a tensor as the checkpoint has it, with what was done to it."""
    first, *others = parts
    rows = sum(x.shape[0] for x in parts if x.shape)
    size = (rows, *first.shape[1:]) if others else first.shape
    found = GgufTensor(
        first.file, tensor.name, first.dtype, size, first.start, first.end, then=tuple(others)
    )
    if tensor.kind != "linear" and _lies_otherwise(size, tensor):
        found = replace(found, shape=tensor.shape)
    if tensor.kind == "norm":
        return replace(found, added=_offset(tensor, shape))
    if tensor.layer is None:
        return found
    block = shape.blocks[tensor.layer]
    inner = tensor.name.removeprefix(shape.block(tensor.layer))
    if tensor.kind == "mixer":
        role = next(x.role for x in block.mixer_tensors if x.name == inner)
        return _of_mixer(found, role, block)
    module, _, part = inner.rpartition(".")
    linear = linears.get(module)
    if linear is None:
        return found
    turned = linear.transposed and part == "weight"
    return replace(
        found,
        shape=size[::-1] if turned else size,
        order=_order(linear, block, architecture),
        columns=column_order(linear.role, block),
        transposed=turned,
    )


def _lies_otherwise(size: tuple[int, ...], tensor: TensorShape) -> bool:
    """Return whether a file has the same numbers with an axis of one more or less, or in groups."""
    if tensor.kind == "norm":
        return prod(size) == prod(tensor.shape)
    return [x for x in size if x != 1] == [x for x in tensor.shape if x != 1]


def _of_mixer(found: GgufTensor, role: str, block: BlockShape) -> GgufTensor:
    """Return a tensor that is neither a projection nor a norm."""
    mixer = block.recurrent
    if isinstance(mixer, GatedDelta):
        return replace(found, order=_delta_order(mixer, role), decays=role == "a_log")
    return replace(found, decays=isinstance(mixer, StateSpace) and role == "a_log")


def _offset(tensor: TensorShape, shape: ModelShape) -> float:
    """Return what was added to the weight of a norm, which files keep around zero where models do."""
    if tensor.name.endswith(".bias"):
        return 0.0
    module = tensor.name.removesuffix(".weight")
    own = None if shape.per_layer is None else shape.per_layer.norm
    outer = [x for x in (shape.final_norm, shape.embedding_norm, own) if x is not None]
    norms = outer if tensor.layer is None else shape.blocks[tensor.layer].norms
    prefix = "" if tensor.layer is None else shape.block(tensor.layer)
    norm = next(x for x in norms if f"{prefix}{x.module}" == module)
    return (norm.kind or shape.norm).offset


def _file_shape(tensor: GgufTensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if tensor.transposed else shape


def _order(linear: Linear, block: BlockShape, architecture: Architecture) -> RowOrder | None:
    half, role = block.head_dim // 2, linear.role
    match role:
        case "gate_up" if block.experts is not None and block.experts.clamp is not None:
            return RowOrder(1, linear.outputs // 2, 2)  # gate and up in turn
        case "q" if architecture.pairs_channels:
            return RowOrder(block.heads, 2, half)
        case "k" if architecture.pairs_channels:
            return RowOrder(block.kv_heads, 2, half)
        case "qkv" if block.interleaved_qkv:
            return RowOrder(1, block.heads, 3, block.head_dim)
    return _delta_order(block.mixer, role) if isinstance(block.mixer, GatedDelta) else None


def column_order(role: str, block: BlockShape) -> RowOrder | None:
    """Return how columns of a projection lie; None if they stay."""
    if not moved_in_files(block, role):
        return None
    assert isinstance(block.mixer, GatedDelta)
    return _delta_order(block.mixer, "delta_z")


def _delta_order(mixer: GatedDelta, role: str) -> RowOrder | None:
    """Return how rows of Gated DeltaNet lie; None if they stay.

    Files have the first of the heads that share keys, for all keys, then the second of them.
    """
    shared = mixer.shared
    if shared == 1:
        return None
    match role:
        case "delta_qkv" | "conv":
            return RowOrder(1, mixer.key_heads, shared, mixer.value_dim, before=2 * mixer.keys)
        case "delta_z":
            return RowOrder(1, mixer.key_heads, shared, mixer.value_dim)
        case "delta_a" | "delta_b" | "a_log" | "dt_bias":
            return RowOrder(1, mixer.key_heads, shared)
    return None


def _formats(shape: ModelShape, tensors: dict[str, GgufTensor]) -> FileFormats | None:
    """Return the types of all matrices, None if no number of them is in blocks."""
    embedding = tensors[f"{shape.embedding}.weight"]
    head = embedding if shape.tied else tensors[f"{shape.head}.weight"]
    blocks = [
        [
            tensors[f"{shape.block(layer)}{linear.module}.weight"]
            for linear in shape.blocks[layer].matrices
        ]
        for layer in range(shape.layers)
    ]
    if not any(tensor.in_blocks for row in (*blocks, [embedding, head]) for tensor in row):
        return None
    return FileFormats(
        matrices=tuple(tuple(tensor.kind.name for tensor in row) for row in blocks),
        embedding=embedding.kind.name,
        head=head.kind.name,
    )
