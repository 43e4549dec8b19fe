"""Matrices in MX FP4, of safetensors or of a GGUF file, as blocks of GGUF's.

Both have sixteen bytes of codes and an exponent for 32 numbers. Published files have the codes of
two neighbours in a byte, GGUF's those of a number and of the one sixteen places behind.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import ModelError
from edgetune.tensors.gguf.finite import all_finite
from edgetune.tensors.gguf.rows import block_rows
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.header import StoredTensor
from edgetune.tensors.packed.kinds import Fp4Tensor
from edgetune.tensors.raw import plain

Bytes = NDArray[np.uint8]

NAME: Final = "MXFP4"
_GROUP: Final = 32


def is_mxfp4(stored: StoredTensor) -> bool:
    """Return whether a matrix is in MX FP4."""
    if isinstance(stored, GgufTensor):
        return stored.dtype == NAME
    return isinstance(stored, Fp4Tensor) and stored.group == _GROUP and stored.total is None


def mxfp4_rows(stored: StoredTensor) -> Bytes:
    """Return a matrix in MX FP4 as rows of blocks (outputs, bytes of a row).

    Raises:
        ModelError: if an exponent stands for no number, or a file ends early.
    """
    rows = _rows(stored)
    if not all_finite(NAME, rows.reshape(-1).data):
        raise ModelError(
            f"The tensor {stored.name} in {stored.file} has scales that are no numbers. Fetch the "
            "model again."
        )
    return rows


def _rows(stored: StoredTensor) -> Bytes:
    if isinstance(stored, GgufTensor):
        return block_rows(stored, 0, stored.file_shape[0])
    assert isinstance(stored, Fp4Tensor)
    codes = plain(stored.codes).view(np.uint8).reshape(stored.codes.shape[0], -1, _GROUP // 2)
    scales = plain(stored.scales).view(np.uint8).reshape(*codes.shape[:2], 1)
    numbers = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], _GROUP)
    half = _GROUP // 2
    paired = numbers[..., :half] | numbers[..., half:] << 4
    return np.concatenate([scales, paired], axis=-1).reshape(len(codes), -1)
