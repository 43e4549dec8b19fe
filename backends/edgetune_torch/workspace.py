"""Memory for the numbers of one product, kept from product to product.

A fresh tensor of some megabytes costs the operating system more time to hand out than the
processor takes to fill it. On CPU the dense form of a matrix and widened activations therefore
live in buffers that are reused; on CUDA torch's allocator already does this.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor


class Workspace:
    """Named scratch buffers of one session, each as large as its largest use."""

    def __init__(
        self, device: torch.device, check: Callable[[bool], None] = lambda _: None
    ) -> None:
        """Hold nothing yet; ``check`` is called before each product and may raise.

        It is told whether the rows that are computed could be fewer.
        """
        self.device = device
        self.divisible = False
        self._check = check
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor with arbitrary content, valid until ``name`` is taken again."""
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self.device)
        size, key = prod(shape), (name, dtype)
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers.pop(key, None)  # before its successor is there
            self._buffers[key] = torch.empty(size, dtype=dtype)
        return self._buffers[key][:size].view(shape)

    def check(self) -> None:
        """Say that a product comes next.

        Raises:
            DeviceOutOfMemoryError: if there is no memory for it.
        """
        self._check(self.divisible)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def clear(self) -> None:
        """Give the buffers back."""
        self._buffers.clear()
