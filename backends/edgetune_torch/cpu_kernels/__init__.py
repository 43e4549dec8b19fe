"""Kernels in C for processors with AVX512-BF16: compiled once by the compiler that is there, if any.

What they compute has a text in torch, which computes everywhere else and with other number formats,
and which they are compared with before they are used. Nothing needs them: without a compiler
everything works, only slower (docs/decisions/0045).
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from edgetune_torch.cpu_kernels.build import built, serves


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had."""
    if not serves():
        return None
    try:
        return built()
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: there is no home
        return None


def place(x: Tensor) -> ctypes.c_void_p:
    """Return where the numbers of x are."""
    return ctypes.c_void_p(x.data_ptr())


def shared_out(
    function: Callable[..., int], arguments: list[Any], count: int, *, least: int = 1
) -> bool:
    """Call a function for ``count`` parts of its work, shared out among torch's threads.

    Each is given its first part and the one behind its last, ``least`` of them at least. Returns
    whether all returned 0.
    """
    threads = max(1, min(torch.get_num_threads(), count // least))
    cuts = [ctypes.c_long(count * each // threads) for each in range(threads + 1)]
    first, *others = pairwise(cuts)
    begun: list[Future[int]] = []
    try:
        begun += (_threads().submit(function, *arguments, *part) for part in others)
        return not any([function(*arguments, *first), *(each.result() for each in begun)])
    finally:
        _ended(begun)


def _ended(begun: Sequence[Future[int]]) -> None:
    """Wait for all, also if interrupted: they write into what the caller owns.

    Raises:
        KeyboardInterrupt: afterwards, if one came meanwhile.
    """
    interrupted: KeyboardInterrupt | None = None
    while not all(each.done() for each in begun):
        try:
            wait(begun)
        except KeyboardInterrupt as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="kernels")
