"""Biases of zeros beside packed matrices, of models that have none: AutoGPTQ wrote one for every matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgetune.errors import ModelError
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed import PackedTensor

_BIAS = ".bias"


def needless_biases(stored: Mapping[str, StoredTensor], strange: Iterable[str]) -> list[str]:
    """Return which of the names that a model does not know are such biases.

    Raises:
        ModelError: if a file cannot be read.
    """
    return [
        name
        for name in strange
        if name.endswith(_BIAS)
        and isinstance(stored.get(f"{name.removesuffix(_BIAS)}.weight"), PackedTensor)
        and _is_zero(stored[name])
    ]


def _is_zero(tensor: StoredTensor) -> bool:
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            return not any(file.read(tensor.nbytes))
    except OSError as error:
        raise ModelError(f"{tensor.file} cannot be read: {error.strerror or error}.") from error
