"""The library of kernels: compiled once by the compiler that is there, and kept for the user.

Code that is loaded must be this user's own, so a kept file is used only if nobody else could have
written it and it ends with the hash of what is before, which a file that is cut short or damaged
does not. Where nothing can be kept it is compiled by each process.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from edgetune.device.cpu import dots_bfloat16
from edgetune.device.system import this_system
from edgetune.owned import replacing_shared, sweep
from edgetune_torch.cache import cache_folder

TEXTS: Final = tuple(sorted(Path(__file__).parent.glob("*.[ch]")))
SOURCES: Final = tuple(file for file in TEXTS if file.suffix == ".c")
COMPILERS: Final = ("cc", "gcc", "clang")
FLAGS: Final = (
    "-O3", "-shared", "-fPIC", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
    "-mavx512bf16", "-mprefer-vector-width=512", "-ffp-contract=off",
)  # fmt: skip
PATIENCE: Final = 120.0
"""Seconds that a compiler is given: it takes one or two."""
SEAL: Final = 32
"""Bytes of the hash at a kept file's end."""


def serves() -> bool:
    """Return whether this machine's processor has what the kernels are written for."""
    return sys.platform == "linux" and dots_bfloat16(this_system())


def lacks_compiler() -> bool:
    """Return whether kernels would serve this processor, and nothing here can compile them."""
    if not serves() or _compiler() is not None:
        return False
    try:
        descriptor = _opened(_file())
    except RuntimeError:  # there is no home to keep anything in
        return True
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def built() -> ctypes.CDLL | None:
    """Return the library, compiled now if it is not kept; None without a compiler.

    Raises:
        OSError, SubprocessError: if it cannot be compiled or loaded.
        RuntimeError: if the user has no home.
    """
    path = _file()
    kept, compiler = _loaded(path), _compiler()
    if kept is not None or compiler is None:
        return kept
    with tempfile.TemporaryDirectory(prefix="edgetune-kernels-") as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, "-o", str(made), *map(str, SOURCES), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        with suppress(OSError):  # a folder that cannot be written, a full disk
            _keep(made.read_bytes(), path)
        return _loaded(path) or ctypes.CDLL(str(made))  # its code stays when the file is gone


def _compiler() -> str | None:
    return next((found for each in COMPILERS if (found := shutil.which(each))), None)


def _file() -> Path:
    """Return where the library of these texts is kept: its name is a hash of all it depends on."""
    texts = (file.read_bytes() for file in TEXTS)
    name = hashlib.sha256(b"".join((repr(FLAGS).encode(), *texts))).hexdigest()[:32]
    return cache_folder().parent / "kernels" / f"{name}.so"


def _keep(code: bytes, path: Path) -> None:
    """Write a library down, readable by its owner alone.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with replacing_shared(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_bytes(code + _seal(code, path))


def _loaded(path: Path) -> ctypes.CDLL | None:
    """Return a kept library; None if there is none, or it was made for another C library.

    The file stays open: the linker knows a library by its name, here that of an open file.
    """
    descriptor = _opened(path)
    if descriptor is None:
        return None
    try:
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        return None


def _opened(path: Path) -> int | None:
    """Return a kept library, open; None if it is not there, not this user's own, or damaged.

    It is opened once, so that what is loaded is what was looked at.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _is_own(os.fstat(descriptor)) and _is_whole(descriptor, path):
            return descriptor
    except OSError:  # a disk that cannot read it
        pass
    os.close(descriptor)
    return None


def _is_whole(descriptor: int, path: Path) -> bool:
    """Return whether an open file is as it was written."""
    with open(descriptor, "rb", closefd=False) as file:
        content = file.read()
    return content[-SEAL:] == _seal(content[:-SEAL], path)


def _is_own(facts: os.stat_result) -> bool:
    """Return whether a file is a plain one that nobody but this user could have written."""
    mode, others = facts.st_mode, stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISREG(mode) and facts.st_uid == os.getuid() and not mode & others


def _seal(code: bytes, path: Path) -> bytes:
    return hashlib.sha256(path.name.encode() + code).digest()
