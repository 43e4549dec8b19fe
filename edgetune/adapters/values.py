"""The numbers of an adapter's file, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.model import StoredTensor
from edgetune.model.weights import listing
from edgetune.tensors.reader import read_tensor

_FLOATS: Final = frozenset({"float16", "bfloat16", "float32", "float64"})


class NotFiniteError(ModelError):
    """An adapter holds NaN or infinite values and nothing else is wrong with it."""


def float_values(file: Path, stored: Mapping[str, StoredTensor]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors in float32.

    Raises:
        ModelError: naming all that are not of floating-point numbers.
        NotFiniteError: naming all with values that are not finite.
    """
    if problems := [f"{n}: is {x.dtype}" for n, x in stored.items() if x.dtype not in _FLOATS]:
        raise ModelError(_unusable(file, problems))
    values: dict[str, NDArray[np.float32]] = {}
    for name, tensor in stored.items():
        values[name] = read_tensor(tensor).astype(np.float32, copy=False)
        if not _is_finite(values[name]):
            problems.append(f"{name}: has values that are not finite (NaN or infinite)")
    if problems:
        raise NotFiniteError(_unusable(file, problems))
    return values


def _unusable(file: Path, problems: list[str]) -> str:
    return (
        f"The tensors in {file} cannot be used; expected finite floating-point numbers. "
        f"Save or copy the adapter again.\n  - {listing(problems)}"
    )


def _is_finite(values: NDArray[np.float32]) -> bool:
    """Tell whether all values are finite, without a mask of their size; (0,) is."""
    return not values.size or bool(np.isfinite(values.min()) and np.isfinite(values.max()))
