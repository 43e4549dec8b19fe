"""Models of any shape with random weights: to measure on, never to use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.model import shape_of
from edgetune.shape import TensorShape
from edgetune.tensors.reader import number_type
from edgetune.tensors.writer import Outgoing, write_safetensors

DEVIATION = 0.02
CHUNK = 1 << 22


def write_random_model(folder: Path, config: Mapping[str, object], seed: int = 0) -> Path:
    """Write a model folder without a tokenizer and return it.

    ``config`` is what ``config.json`` says; norms are one, biases zero, the rest is normal. The
    weights are made a chunk at a time, so that a large model needs no memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = shape_of(config)
    generator = np.random.default_rng(seed)
    tensors = [
        Outgoing(
            name=tensor.name,
            dtype=shape.dtype,
            shape=tensor.shape,
            chunks=partial(_values, tensor, shape.dtype, generator),
        )
        for tensor in shape.tensors()
    ]
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), "utf-8")
    return folder


def _values(
    tensor: TensorShape, dtype: str, generator: np.random.Generator
) -> Iterator[NDArray[Any]]:
    kind, left = number_type(dtype), tensor.size
    while left:
        count = min(left, CHUNK)
        left -= count
        if tensor.kind in {"norm", "bias"}:
            yield np.full(count, tensor.name.endswith("weight"), np.float32).astype(kind)
        else:
            noise = generator.standard_normal(count, np.float32)
            yield (noise * DEVIATION).astype(kind)
