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


def kernel_notes(system: System, capability: tuple[int, int] | None) -> tuple[str, ...]:
    """Return what a card could do faster with what is missing, and what to type."""
    absence = kernel_absence(system, capability)
    if absence is None or not system.has_module("torch"):
        return ()
    young = capability is not None and has_kernels(capability)
    notes = (f"edgetune's own kernels do not run: {absence}",) if young else ()
    if system.has_module("bitsandbytes"):
        return notes
    slow = "4-bit weights are unpacked by torch's operations, which is slow"
    return (*notes, f"{slow}. Type: pip install bitsandbytes")
