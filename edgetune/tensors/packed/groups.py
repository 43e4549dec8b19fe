"""Which inputs share a scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.raw import plain


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of ``inputs``: runs of one size, or a number for each (K,)."""

    size: int
    inputs: int
    numbers: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, stored: StoredTensor | None, count: int, size: int, inputs: int) -> Groups:
        """Return the groups that a file has, or runs of ``size``.

        Raises:
            ModelError: if a file names a group that there is not.
        """
        if stored is None:
            return cls(size, inputs)
        found = plain(stored).astype(np.int64)
        if found.min() < 0 or found.max() >= count:
            raise ModelError(
                f"The tensor {stored.name} in {stored.file} names groups from {found.min()} to "
                f"{found.max()}, and there are {count}. Fetch the model again."
            )
        return cls(size, inputs, found)

    def spread(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return what groups have (R, groups) for each of their inputs (R, K), as float32."""
        numbers = values.astype(np.float32)
        if self.numbers is not None:
            return numbers[:, self.numbers]
        return np.repeat(numbers, self.size, axis=1)[:, : self.inputs]
