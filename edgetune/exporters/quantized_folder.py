"""A merged model in MLX's 8 or 4 bits, as mlx-lm loads it.

Groups of 64 inputs share a scale and a bias: ``w = scale * code + bias``. The codes of a row lie
one after the other in 32-bit words, the first in the lowest bits. Scales and biases are chosen as
``mx.quantize`` chooses them, so that the end of a group that is farther from 0, and 0, are exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import CONFIG
from edgetune.adapters.mlx_lm import MLX_WEIGHTS
from edgetune.errors import UsageError
from edgetune.exporters.hf import Merged, companions
from edgetune.model import LocalModel, StoredTensor
from edgetune.model.weights import stored_tensors
from edgetune.storage import AFFINE_GROUP, broken_rows
from edgetune.tensors.reader import number_type, read_rows
from edgetune.tensors.writer import Chunks, Outgoing, row_spans

Bits = Literal["q8", "q4"]
BITS: Final[Mapping[str, int]] = {"q8": 8, "q4": 4}
TARGET: Final = "mlx"
"""The export whose folders can be quantized so."""

WORD: Final = 32
LEAST_SCALE: Final = np.float32(1e-7)


def quantize_folder(source: Path, target: Path, quantization: Bits) -> None:
    """Fill ``target`` with an exported folder, quantized; some rows of a matrix at a time."""
    model = LocalModel.open(source)
    chosen, bits = {tensor.name for tensor in _matrices(model)}, BITS[quantization]
    shards: dict[str, list[Outgoing]] = {}
    for tensor in stored_tensors(source).values():
        made = _quantized(tensor, bits) if tensor.name in chosen else [_copied(tensor)]
        shards.setdefault(tensor.file.name, []).extend(made)
    how = {"group_size": AFFINE_GROUP, "bits": bits, "mode": "affine"}
    merged = Merged(
        shards=shards,
        copied=[*companions(source), source / MLX_WEIGHTS, source / CONFIG],
        config={**json.loads((source / "config.json").read_text("utf-8")), "quantization": how},
        source=source,
        needed=0,
    )
    merged.write(target)


def refuse_unquantizable(model: LocalModel, quantization: Bits) -> None:
    """Refuse what cannot be loaded in this format.

    Raises:
        UsageError: if mlx-lm turns the model's matrices or puts them together, or they are not
            whole groups.
    """
    shape = model.shape
    if shape.has_experts:
        raise UsageError(
            "mlx-lm puts the experts of a mixture together when it loads them, which codes do not "
            "survive. Export without --quantize, then mlx_lm.convert -q."
        )
    if any(linear.transposed for linear in shape.all_linears):
        raise UsageError(
            f"mlx-lm turns the matrices of {shape.family} when it loads them, which codes do not "
            "survive. Export without --quantize, then mlx_lm.convert -q."
        )
    broken = broken_rows(shape, quantization)
    if broken is not None:
        raise UsageError(
            f"--quantize {quantization} stores groups of {AFFINE_GROUP} inputs, and this model has "
            f"a matrix with {broken}. Export without --quantize."
        )


def quantized(values: NDArray[np.float32], bits: int, dtype: str) -> tuple[NDArray[Any], ...]:
    """Return codes (N, K bits / 32), scales and biases (N, K / 64) of a matrix (N, K)."""
    groups = values.reshape(len(values), -1, AFFINE_GROUP)
    least, most, steps = groups.min(-1), groups.max(-1), np.float32(2**bits - 1)
    below = np.abs(least) > np.abs(most)
    scale = np.maximum((most - least) / steps, LEAST_SCALE)
    scale = np.where(below, scale, -scale)
    edge = np.where(below, least, most)
    zero = np.rint(edge / scale)  # the code of 0
    scale = np.where(zero == 0, scale, edge / np.where(zero == 0, np.float32(1), zero))
    bias = np.where(zero == 0, np.float32(0), edge)
    codes = np.clip(np.rint((groups - bias[..., None]) / scale[..., None]), 0, steps)
    places = np.arange(0, WORD, bits, dtype=np.uint32)
    by_word = codes.astype(np.uint32).reshape(len(values), -1, len(places))
    words = np.bitwise_or.reduce(by_word << places, axis=-1)
    number = number_type(dtype)
    return words, scale.astype(number), bias.astype(number)


def _matrices(model: LocalModel) -> Iterator[StoredTensor]:
    """Yield the projections, the embedding and the head."""
    for tensor in model.shape.tensors():
        if tensor.kind in {"linear", "embedding", "head"}:
            yield model.tensors[tensor.name]


def _quantized(tensor: StoredTensor, bits: int) -> list[Outgoing]:
    rows, inputs = tensor.shape
    module = tensor.name.removesuffix(".weight")
    forms = (
        (f"{module}.weight", "uint32", inputs * bits // WORD),
        (f"{module}.scales", tensor.dtype, inputs // AFFINE_GROUP),
        (f"{module}.biases", tensor.dtype, inputs // AFFINE_GROUP),
    )
    return [
        Outgoing(
            name=name, dtype=dtype, shape=(rows, columns), chunks=partial(_part, tensor, bits, i)
        )
        for i, (name, dtype, columns) in enumerate(forms)
    ]


def _part(tensor: StoredTensor, bits: int, which: int) -> Chunks:
    for start, stop in row_spans(tensor.shape):
        values = read_rows(tensor, start, stop).astype(np.float32, copy=False)
        yield quantized(values, bits, tensor.dtype)[which]


def _copied(tensor: StoredTensor) -> Outgoing:
    def chunks() -> Chunks:
        for start, stop in row_spans(tensor.shape):
            yield read_rows(tensor, start, stop)

    return Outgoing(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, chunks=chunks)
