"""NF4 unpacked by compiled code: that of bitsandbytes' package, called without importing it.

Importing the package costs 115 MB and may ask a hub for kernels (decision 7); its shared library
needs neither and writes into memory that is there. It is used where it was read (``KNOWN``) and gives
the same bits as the text in :mod:`edgetune_torch.nf4`; elsewhere the text does.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

KNOWN: Final = "0.50."
"""Versions of bitsandbytes whose interface was read begin so."""

LIBRARY: Final = "libbitsandbytes_cpu.so"
BLOCK: Final = 64
NAMES: Final = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def unpack(codes: Tensor, scales: Tensor, out: Tensor) -> bool:
    """Unpack pairs of codes (N / 2,) with scales (N / 64,) into ``out`` (N,), if that can be done.

    All are contiguous and on the processor; scales are float32. False, and nothing done, if there
    is no library for ``out``'s type.
    """
    here = type(codes) is Tensor and codes.device.type == "cpu"  # not a fake one
    function = _function(out.dtype) if here else None
    if function is None:
        return False
    _call(function, codes, scales, out)
    return True


def _call(function: Any, codes: Tensor, scales: Tensor, out: Tensor) -> None:
    places = (ctypes.c_void_p(each.data_ptr()) for each in (codes, scales, out))
    sizes = (ctypes.c_longlong(each) for each in (BLOCK, len(scales), BLOCK))
    function(*places, *sizes)


@cache
def _function(dtype: torch.dtype) -> Any:
    """Return the library's function for a type, or None if it is not there or not right."""
    library = _library()
    if library is None or dtype not in NAMES:
        return None
    try:
        function = getattr(library, f"cdequantize_blockwise_cpu_nf4_{NAMES[dtype]}")
    except AttributeError:
        return None
    function.restype = None
    return function if _is_right(function, dtype) else None


@cache
def _library() -> ctypes.CDLL | None:
    spec = find_spec("bitsandbytes")
    try:
        if spec is None or spec.origin is None or not version("bitsandbytes").startswith(KNOWN):
            return None
        return ctypes.CDLL(str(Path(spec.origin).parent / LIBRARY))
    except (OSError, PackageNotFoundError):
        return None


def _is_right(function: Any, dtype: torch.dtype) -> bool:
    """Return whether the function gives the same bits as the text, on every pair of codes."""
    from edgetune_torch.nf4 import unpack_by_text

    codes = torch.arange(256, dtype=torch.uint8).repeat(BLOCK // 2)
    scales = torch.linspace(0, 1, len(codes) * 2 // BLOCK).square()
    found, expected = (torch.empty(len(codes) * 2, dtype=dtype) for _ in range(2))
    _call(function, codes, scales, found)
    unpack_by_text(codes, scales, expected)
    return torch.equal(found, expected)
