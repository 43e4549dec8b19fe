"""Adapters for tests: every tensor random, so that one that is left out changes the result."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.methods.base import Method
from edgetune.shape import ModelShape

Tensors = dict[str, NDArray[np.float32]]


def random_tensors(method: Method, shape: ModelShape, seed: int = 0) -> Tensors:
    """Return normal values with a deviation of 0.1 for every tensor of a method."""
    draw = np.random.default_rng(seed)
    return {
        tensor.name: draw.normal(0, 0.1, tensor.shape).astype(np.float32)
        for tensor in method.tensors(shape)
    }


def random_adapter(method: Method, shape: ModelShape, seed: int = 0) -> LoadedAdapter:
    """Return an adapter as it is read from a folder."""
    return LoadedAdapter(method=method, tensors=random_tensors(method, shape, seed), base="base")
