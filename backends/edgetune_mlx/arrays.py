"""Arrays as the host sees them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


def array_of(array: mx.array, *, copied: bool = True) -> NDArray[Any]:
    """Return an array's numbers; not ``copied``, they are its own."""
    return np.array(array) if copied else np.asarray(array)
