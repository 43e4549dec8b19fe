"""A model in a GGUF file: its shape, and where each of its tensors lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.errors import ModelError
from edgetune.model.families import shape_of
from edgetune.model.gguf_config import Architecture, architecture_of, config_of
from edgetune.model.gguf_names import BESIDES, expert_place, gguf_names
from edgetune.model.gguf_source import Source
from edgetune.model.weights import listing
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune.shape import (
    BlockShape,
    FileFormats,
    ModelShape,
    TensorShape,
)
from edgetune.storage import FLOAT32_BYTES, moved_in_files
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
    header = read_parts(file)
    config = config_of(header)
    shape = shape_of(config)
    tensors = _checked(header, shape)
    return config, replace(shape, formats=_formats(shape, tensors)), tensors


def _checked(header: GgufHeader, shape: ModelShape) -> dict[str, GgufTensor]:
    names, problems, found = gguf_names(shape), [], {}
    _refuse_types(header)
    architecture, experts = architecture_of(header), dict(_expert_places(shape, header))
    names |= {name: place[0] for name, place in experts.items()}
    for tensor in shape.tensors():
        stored = header.tensors.get(names[tensor.name])
        if stored is None and tensor.layer is not None:
            stored = _listed(header, names[tensor.name], tensor)
        if stored is not None and tensor.name in experts:
            _, number, parts = experts[tensor.name]
            stored = _of_expert(stored, number, parts)
        if stored is not None and tensor.shape == (1, *stored.shape):  # a gate for one number
            stored = replace(stored, shape=tensor.shape)
        if stored is None:
            problems.append(f"{names[tensor.name]}: missing, expected {tensor.shape}")
            continue
        ours = _as_checkpoint(stored, tensor, shape, architecture)
        if ours.shape != tensor.shape:
            problems.append(
                f"{stored.name}: is {stored.shape}, expected {_file_shape(ours, tensor.shape)}"
            )
        found[tensor.name] = ours
    strange = header.tensors.keys() - names.values() - BESIDES
    further = _guessing(header)
    problems += [
        f"{name}: not expected" for name in sorted(strange) if not name.startswith(further)
    ]
    if problems:
        raise ModelError(
            f"The tensors in {header.file} do not fit its metadata:\n  - {listing(problems)}"
        )
    return found


def _guessing(header: GgufHeader) -> tuple[str, ...]:
    """Return what the names begin with in layers that guess further tokens, which stay unread."""
    source = Source(header)
    return tuple(f"blk.{layer}." for layer in range(source.layers, source.whole("block_count")))


def _expert_places(
    shape: ModelShape, header: GgufHeader
) -> Iterator[tuple[str, tuple[str, int, int]]]:
    """Yield the names of the tensors of experts, each with where it is (``expert_place``)."""
    for layer, block in enumerate(shape.blocks):
        for linear in block.expert_linears:
            name = f"{shape.block(layer)}{linear.module}.weight"
            yield name, expert_place(layer, linear, header.tensors)


def _of_expert(stored: StoredTensor, number: int, parts: int) -> StoredTensor:
    """Return one of the matrices in a tensor that has ``parts`` of each expert, if it has so many."""
    if len(stored.shape) != 3 or stored.shape[1] % parts or number >= parts * stored.shape[0]:
        return stored
    experts, rows, inputs = stored.shape
    size = stored.nbytes // (parts * experts)
    start = stored.start + number * size
    return replace(stored, shape=(rows // parts, inputs), start=start, end=start + size)


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
    stored: StoredTensor, tensor: TensorShape, shape: ModelShape, architecture: Architecture
) -> GgufTensor:
    """Return a tensor as the checkpoint has it, with what was done to it."""
    found = GgufTensor(
        stored.file, tensor.name, stored.dtype, stored.shape, stored.start, stored.end
    )
    if tensor.kind == "norm":
        return replace(found, added=_offset(tensor, shape))
    if tensor.layer is None:
        return found
    block = shape.blocks[tensor.layer]
    inner = tensor.name.removeprefix(shape.block(tensor.layer))
    if tensor.kind == "mixer":
        role = next(x.role for x in block.mixer_tensors if x.name == inner)
        return _of_mixer(found, tensor, role, block)
    module, _, part = inner.rpartition(".")
    linear = next((x for x in block.linears if x.module == module), None)
    if linear is None:
        return found
    turned = linear.transposed and part == "weight"
    return replace(
        found,
        shape=stored.shape[::-1] if turned else stored.shape,
        order=_order(linear.role, block, architecture),
        columns=column_order(linear.role, block),
        transposed=turned,
    )


def _of_mixer(found: GgufTensor, tensor: TensorShape, role: str, block: BlockShape) -> GgufTensor:
    """Return a tensor that is neither a projection nor a norm: a convolution's has another axis."""
    channels = tensor.shape[:1] + tensor.shape[2:]
    if role == "conv" and found.shape == channels:
        found = replace(found, shape=tensor.shape)
    if not isinstance(block.mixer, GatedDelta):
        return found
    return replace(found, order=_delta_order(block.mixer, role), decays=role == "a_log")


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


def _order(role: str, block: BlockShape, architecture: Architecture) -> RowOrder | None:
    half = block.head_dim // 2
    match role:
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
