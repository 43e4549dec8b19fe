"""Tensors as the host sees them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor


def array_of(tensor: Tensor, *, copied: bool = True) -> NDArray[Any]:
    """Return a tensor's numbers; not ``copied``, they are its own where the host can see them."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array.copy() if copied else array
