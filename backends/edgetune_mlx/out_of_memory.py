"""What MLX and the libraries below it say where memory ran out."""

from __future__ import annotations

from edgetune.out_of_memory import FailedAllocations

SIGNS = (
    "[malloc", "[metal::malloc]", "Insufficient Memory", "bad_alloc", "llocate memory",
    "can't start new thread", "ErrorImpactingInteractivity", "CallbackErrorTimeout",
)  # fmt: skip
"""What a RuntimeError says where an allocation failed: MLX's two allocators, Metal's command
buffers, the C++ library, the system, that of a thread's stack. The last two are macOS's watchdog
for the display, which ends work that took too long: fewer rows take less, as with memory.

Not yet seen on a Mac: the texts are those of MLX 0.32's source; a command buffer may also end the
process instead of raising."""

_failed = FailedAllocations(SIGNS)
is_out_of_memory, out_of_memory = _failed.include, _failed.translated
