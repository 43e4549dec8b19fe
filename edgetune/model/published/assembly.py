"""The tensors of a folder while matrices are put together of them; what is wrong is collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from edgetune.errors import ModelError
from edgetune.model.config import FloatName
from edgetune.model.weights import listing
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed import PackedTensor

HALVES: Final = ("float16", "bfloat16")
LARGEST_PART: Final = 1 << 16
"""Bytes of a tensor that is read to know what others mean."""

WEIGHT: Final = ".weight"


class Assembly:
    """Tensors by the names that files have; those that became a part of a matrix are gone."""

    def __init__(self, stored: Mapping[str, StoredTensor], dtype: FloatName) -> None:
        """Begin with all tensors; ``dtype`` is that of matrices whose scales are wider."""
        self.tensors = dict(stored)
        self.dtype: FloatName = dtype
        self.problems: list[str] = []

    def with_end(self, *ends: str) -> list[str]:
        """Return the names that end so, without these ends."""
        found = dict.fromkeys(
            name.removesuffix(end) for name in self.tensors for end in ends if name.endswith(end)
        )
        return list(found)

    def drop(self, *ends: str) -> None:
        """Leave out what no weight is made of: scales of activations and of cached keys."""
        for name in [name for name in self.tensors if name.endswith(ends)]:
            del self.tensors[name]

    def part(
        self,
        name: str,
        of: str,
        *,
        dtypes: Iterable[str] = (),
        shape: tuple[int, ...] | None = None,
        nbytes: int | None = None,
    ) -> StoredTensor | None:
        """Return a tensor that the matrix ``of`` needs, and note what is wrong with it."""
        found = self.tensors.get(name)
        if found is None:
            self.problems.append(f"{name}: missing, {of} cannot be read without it")
            return None
        return self._checked(found, tuple(dtypes), shape, nbytes)

    def optional(
        self, name: str, *, dtypes: Iterable[str] = (), shape: tuple[int, ...] | None = None
    ) -> StoredTensor | None:
        """Return a tensor if it is there; what is wrong with it is noted."""
        found = self.tensors.get(name)
        return None if found is None else self._checked(found, tuple(dtypes), shape, None)

    def _checked(
        self,
        found: StoredTensor,
        dtypes: tuple[str, ...],
        shape: tuple[int, ...] | None,
        nbytes: int | None,
    ) -> StoredTensor | None:
        problem = None
        if dtypes and found.dtype not in dtypes:
            problem = f"is {found.dtype}, expected {' or '.join(dtypes)}"
        elif shape is not None and found.shape != shape:
            problem = f"is {found.shape}, expected {shape}"
        elif nbytes is not None and found.nbytes != nbytes:
            problem = f"has {found.nbytes} bytes, expected {nbytes}"
        if problem is None:
            return found
        self.problems.append(f"{found.name}: {problem}")
        return None

    def put(self, tensor: PackedTensor) -> None:
        """Have a matrix in the place of its parts."""
        for part in tensor.parts:
            self.tensors.pop(part.name, None)
        self.tensors[tensor.name] = tensor

    def small(self, tensor: StoredTensor) -> bytes:
        """Return the bytes of a small tensor.

        Raises:
            ModelError: if it is not small, or cannot be read.
        """
        if tensor.nbytes > LARGEST_PART:
            raise ModelError(
                f"{tensor.file}: {tensor.name} has {tensor.nbytes} bytes, which is more than it "
                "can need. Fetch or copy the file again."
            )
        try:
            with tensor.file.open("rb") as file:
                file.seek(tensor.start)
                return file.read(tensor.nbytes)
        except OSError as error:
            raise ModelError(f"{tensor.file} cannot be read: {error.strerror or error}.") from error

    def dtype_by(self, scales: StoredTensor) -> FloatName:
        """Return the number format of a matrix with such scales: theirs, if it is one of 16 bits."""
        return scales.dtype if scales.dtype in HALVES else self.dtype  # type: ignore[return-value]

    def finish(self, method: str) -> dict[str, StoredTensor]:
        """Return all tensors.

        Raises:
            ModelError: naming everything that is wrong.
        """
        if self.problems:
            raise ModelError(
                f"The tensors of this {method} checkpoint do not fit each other:\n  - "
                f"{listing(self.problems)}\nFetch or convert it again."
            )
        return self.tensors


Assembler = Callable[[Assembly, Mapping[str, object], Mapping[str, object]], None]
"""Puts matrices together; it is given the settings of the quantization and the whole config."""


def group_size(inputs: int, groups: int, said: object) -> int | None:
    """Return how many inputs share a scale, if they are as many as a config says or all alike.

    >>> group_size(96, 2, 64), group_size(96, 3, -1), group_size(96, 1, -1), group_size(96, 5, 64)
    (64, 32, 96, None)
    """
    if isinstance(said, int) and said > 0 and -(-inputs // said) == groups:
        return said
    return inputs // groups if groups and inputs % groups == 0 else None
