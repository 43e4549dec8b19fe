"""The merged weights as a stream: a run of rows at a time, in float32, rounded once.

Every tensor of the base's files comes along under its stored name, those that the language
model does not use (a vision tower, buffers) too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgetune.errors import CheckFailedError, UsageError
from edgetune.exporters.base import ExportRequest
from edgetune.exporters.turned import spans_of
from edgetune.exporters.updates import Merge
from edgetune.methods.merging import Piece, Stacked, Update
from edgetune.model import LocalModel, StoredTensor
from edgetune.model.names import match_names, tied_heads
from edgetune.model.published import assembled, needless_biases
from edgetune.model.weights import stored_tensors
from edgetune.tensors.packed import PackedTensor
from edgetune.tensors.reader import number_type, read_rows
from edgetune.tensors.writer import Chunks, Outgoing


def merged_tensors(request: ExportRequest, merge: Merge) -> list[Outgoing]:
    """Return all tensors of the merged model, in the order of the base's files; reads none.

    Tensors that the base does not have come last.
    """
    model = request.model
    changes = _by_stored_name(request, merge)
    used, wide = {tensor.name for tensor in model.tensors.values()}, _kept_wide(model)
    outgoing, found = [], set()
    everything = _all_tensors(model)
    stale = _stale_heads(model, changes, everything)
    for stored in _in_file_order({k: x for k, x in everything.items() if k not in stale}):
        # buffers keep their own number format
        converted = stored.name in used or stored.dtype == model.shape.dtype
        dtype: str = stored.read_dtype
        if request.dtype is not None and converted:
            dtype = "float32" if stored.name in wide else request.dtype
        outgoing.append(
            Outgoing(
                name=stored.name,
                dtype=dtype,
                shape=stored.shape,
                chunks=partial(_chunks, stored, _change(stored, changes), dtype),
            )
        )
        found.add(stored.name)
    if lost := changes.keys() - found:
        raise UsageError(
            f"{min(lost)} stays in this model's files as it is packed, and cannot hold what was "
            "trained. Merge into the 16-bit model, or export the adapter itself (--to peft)."
        )
    return outgoing + _added(request, merge)


def _stale_heads(model: LocalModel, changes: Collection[str], stored: Collection[str]) -> set[str]:
    """Return the copies of a tied head, of which an embedding that was trained is no copy any more."""
    embedding = model.tensors[model.shape.embedding_tensor].name
    return set(tied_heads(model.shape, stored)) - {embedding} if embedding in changes else set()


def _kept_wide(model: LocalModel) -> set[str]:
    """Return the tensors that transformers has in float32 in 16-bit models: by them experts are chosen."""
    blocks = enumerate(model.shape.blocks)
    names = (
        f"{model.shape.block(layer)}{block.experts.correction}"
        for layer, block in blocks
        if block.experts is not None and block.experts.correction is not None
    )
    return {model.tensors[name].name for name in names}


def _by_stored_name(
    request: ExportRequest, merge: Merge
) -> dict[str, list[tuple[StoredTensor, Update]]]:
    """Return what changes by the names in the files; one tensor may have several of the shape's."""
    found: dict[str, list[tuple[StoredTensor, Update]]] = {}
    for name, change in merge.changes.items():
        piece = request.model.tensors[name]
        found.setdefault(piece.name, []).append((piece, change))
    return found


def _change(
    stored: StoredTensor, changes: Mapping[str, list[tuple[StoredTensor, Update]]]
) -> Update | None:
    """Return the change of a tensor of the files: that of its only piece, or those of a stack's."""
    members = changes.get(stored.name, [])
    for piece, change in members:
        if (piece.start, piece.shape) == (stored.start, stored.shape):
            return change
    if not members:
        return None
    height = stored.shape[1]
    row = stored.nbytes // (stored.shape[0] * height)
    pieces = (
        Piece(first=(piece.start - stored.start) // row, rows=piece.shape[0], change=change)
        for piece, change in members
    )
    return Stacked(tuple(pieces), height)


def _added(request: ExportRequest, merge: Merge) -> list[Outgoing]:
    """Return biases that are new, named as the files name their projections."""
    dtype, outgoing = request.dtype or request.model.shape.dtype, []
    for name, values in merge.added.items():
        weight = request.model.tensors[f"{name.removesuffix('.bias')}.weight"].name
        stored = f"{weight.removesuffix('.weight')}.bias"
        whole = partial(_whole, values, dtype, stored)
        outgoing.append(Outgoing(name=stored, dtype=dtype, shape=values.shape, chunks=whole))
    return outgoing


def _whole(values: NDArray[np.float32], dtype: str, name: str) -> Chunks:
    yield _rounded(values, dtype, name)


def _all_tensors(model: LocalModel) -> Mapping[str, StoredTensor]:
    """Return the tensors of a model's files, as the checkpoint has or had them.

    What a quantized checkpoint has as codes comes as numbers.
    """
    if model.folder.is_file():
        return model.tensors
    found = dict(assembled(model.config, stored_tensors(model.folder)))
    for tensor in model.tensors.values():
        if isinstance(tensor, PackedTensor) and tensor.turned and tensor.name in found:
            found[tensor.name] = tensor
    for name in needless_biases(found, match_names(model.shape, found)[1]):
        del found[name]
    return found


def _in_file_order(tensors: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    return sorted(tensors.values(), key=lambda tensor: (tensor.file.name, tensor.start))


def _chunks(stored: StoredTensor, change: Update | None, dtype: str) -> Chunks:
    for start, stop in spans_of(stored):
        values = read_rows(stored, start, stop)
        if change is None and stored.read_dtype == dtype:
            yield values
        else:
            values = values.astype(np.float32, copy=False)
            if change is not None:
                change.apply(values, start, stop)
            yield _rounded(values, dtype, stored.name)


def _rounded(values: NDArray[np.float32], dtype: str, name: str) -> NDArray[Any]:
    """Return values in another number format.

    Raises:
        CheckFailedError: if they are not finite numbers there.
    """
    largest = float(ml_dtypes.finfo(number_type(dtype)).max)
    if values.size and not (values.min() >= -largest and values.max() <= largest):
        raise CheckFailedError(
            f"{name} has values that are not finite in {dtype}. Export with --dtype float32 or "
            "bfloat16; if that fails too, the base model or the adapter is damaged."
        )
    return values.astype(number_type(dtype), copy=False)
