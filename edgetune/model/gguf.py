"""A model in a GGUF file: its shape, and where each of its tensors lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.errors import ModelError
from edgetune.model.families import shape_of
from edgetune.model.gguf_config import Architecture, architecture_of, config_of
from edgetune.model.gguf_names import BESIDES, gguf_names
from edgetune.model.weights import listing
from edgetune.shape import BlockShape, FileFormats, ModelShape
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
    architecture, experts = architecture_of(header), dict(_expert_numbers(shape))
    for tensor in shape.tensors():
        stored = header.tensors.get(names[tensor.name])
        if stored is not None and tensor.name in experts:
            stored = _of_expert(stored, experts[tensor.name])
        if stored is not None and tensor.shape == (1, *stored.shape):  # a gate for one number
            stored = replace(stored, shape=tensor.shape)
        if stored is None:
            problems.append(f"{names[tensor.name]}: missing, expected {tensor.shape}")
            continue
        ours = _as_checkpoint(stored, tensor.name, shape, architecture)
        if ours.shape != tensor.shape:
            problems.append(
                f"{stored.name}: is {stored.shape}, expected {_file_shape(ours, tensor.shape)}"
            )
        found[tensor.name] = ours
    strange = header.tensors.keys() - names.values() - BESIDES
    problems += [f"{name}: not expected" for name in sorted(strange)]
    if problems:
        raise ModelError(
            f"The tensors in {header.file} do not fit its metadata:\n  - {listing(problems)}"
        )
    return found


def _expert_numbers(shape: ModelShape) -> Iterator[tuple[str, int]]:
    """Yield the names of the tensors of experts, each with the number of its expert."""
    for layer, block in enumerate(shape.blocks):
        for linear in block.expert_linears:
            if linear.expert is not None:
                yield f"{shape.block(layer)}{linear.module}.weight", linear.expert


def _of_expert(stored: StoredTensor, number: int) -> StoredTensor:
    """Return the matrix of one expert in a tensor that has all, if it has so many."""
    if len(stored.shape) != 3 or number >= stored.shape[0]:
        return stored
    size = stored.nbytes // stored.shape[0]
    start = stored.start + number * size
    return replace(stored, shape=stored.shape[1:], start=start, end=start + size)


def _refuse_types(header: GgufHeader) -> None:
    wrong = sorted({x.dtype for x in header.tensors.values() if x.dtype not in USABLE})
    if wrong:
        raise ModelError(
            f"{header.file} has tensors of type {', '.join(wrong)}, which cannot be computed with "
            f"here. Supported: {', '.join((*FLOATS, *QUANTIZED))}. Take the model in one of these."
        )


def _as_checkpoint(
    stored: StoredTensor, name: str, shape: ModelShape, architecture: Architecture
) -> GgufTensor:
    """Return a tensor as the checkpoint has it, with what was done to it."""
    module, _, part = name.rpartition(".")
    inner = module.partition(shape.block_prefix.partition("{}")[0])[2].partition(".")[2]
    block = shape.blocks[0]  # no architecture here has blocks that differ in projections
    linear = next((x for x in block.linears if x.module == inner), None)
    turned = linear is not None and linear.transposed and part == "weight"
    is_norm = linear is None and part == "weight" and len(stored.shape) == 1
    return GgufTensor(
        stored.file,
        name,
        stored.dtype,
        stored.shape[::-1] if turned else stored.shape,
        stored.start,
        stored.end,
        order=None if linear is None else _order(linear.role, block, architecture),
        transposed=turned,
        added=1.0 if is_norm and architecture.norms_around_one else 0.0,
    )


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
