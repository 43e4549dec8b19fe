"""Whether the backend's own kernels compute on a card, as its driver and the machine say.

They are in Triton, which comes with torch's builds for CUDA on Linux, and which compiles a small
program for the host with the machine's own C compiler when a kernel is launched for the first time.
"""

from __future__ import annotations

from typing import Final

from edgetune.device.card import has_kernels
from edgetune.device.system import System

_COMPILERS: Final = (("gcc", "--version"), ("clang", "--version"))


def kernel_absence(system: System, capability: tuple[int, int] | None) -> str | None:
    """Return why there are no kernels for a card of a compute capability; ``None`` if there are."""
    if capability is None or not has_kernels(capability):
        return "they are not for cards of its age"
    if not system.has_module("triton"):
        return "Triton is not installed. Type: pip install triton"
    if "CC" not in system.environment and not any(map(system.run, _COMPILERS)):
        return "Triton finds no C compiler. Type: sudo apt install gcc python3-dev"
    return None
