"""Kernels in C for processors with AVX512-BF16: compiled once by the compiler that is there, if any.

What they compute has a text in torch, which computes everywhere else and with other number formats,
and which they are compared with before they are used. Nothing needs them: without a compiler
everything works, only slower (docs/decisions/0045).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from edgetune.device.cpu import dots_bfloat16
from edgetune.device.system import this_system
from edgetune.owned import replacing_shared
from edgetune_torch.cache import cache_folder

SOURCES: Final = tuple(sorted(Path(__file__).parent.glob("*.c")))
COMPILERS: Final = ("cc", "gcc", "clang")
FLAGS: Final = (
    "-O3", "-shared", "-fPIC", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
    "-mavx512bf16", "-mprefer-vector-width=512", "-ffp-contract=off",
)  # fmt: skip
PATIENCE: Final = 120.0
"""Seconds that a compiler is given: it takes one or two."""


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be had."""
    if not _serves():
        return None
    try:
        path = _compiled()
        return None if path is None else ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def lacks_compiler() -> bool:
    """Return whether kernels would serve this processor, and nothing here can compile them."""
    return _serves() and not _is_ours(_file()) and _compiler() is None


def _serves() -> bool:
    return sys.platform == "linux" and dots_bfloat16(this_system())


def _file() -> Path:
    """Return where the library of these sources is, or will be."""
    texts = [file.read_bytes() for file in SOURCES]
    name = hashlib.sha256(b"".join((repr(FLAGS).encode(), *texts))).hexdigest()[:32]
    return cache_folder().parent / "kernels" / f"{name}.so"


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.stat().st_uid == os.getuid()


def _compiler() -> str | None:
    return next((found for each in COMPILERS if (found := shutil.which(each))), None)


def _compiled() -> Path | None:
    """Return the library's file, compiled now if it is not there yet; None without a compiler.

    Raises:
        OSError, SubprocessError: if it cannot be compiled, or not be kept.
    """
    path, compiler = _file(), _compiler()
    if _is_ours(path):
        return path
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, "-o", str(made), *map(str, SOURCES), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_shared(path) as temporary:
            temporary.write_bytes(made.read_bytes())
    return path


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
    begun = [_threads().submit(function, *arguments, *part) for part in others]
    return not any([function(*arguments, *first), *(each.result() for each in begun)])


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="kernels")
