"""Faults in torch: operations that fail before they do anything."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edgetune.backend import Session
from edgetune_torch.checkpoints import DiskCheckpoints, KeptCheckpoints
from edgetune_torch.session import TorchSession

ERRORS = (
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1048576 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError,
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
    lambda: RuntimeError("could not create a primitive"),
)


class Fault(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails the operation of a number; the backward pass on a processor runs under it too."""

    def __init__(self, at: int, *, every: bool, sticky: bool = False) -> None:
        """Count ``every`` operation, or those alone that return new tensors; fail one.

        ``sticky``: and all that follow, for as long as the mode is on.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._at, self._every, self._sticky = at, every, sticky

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation or fail it."""
        if self._every or _returns_new(func):
            self.count += 1
            if self._at and (self.count >= self._at if self._sticky else self.count == self._at):
                raise ERRORS[self._at % len(ERRORS)]()
        return func(*args, **(kwargs or {}))


def _returns_new(func: Any) -> bool:
    return any(result.alias_info is None for result in func._schema.returns)


def at_rest(session: Session) -> bool:
    """Tell whether all gradients are zero and no checkpoint is held."""
    assert isinstance(session, TorchSession)
    kept = session.engine.checkpoints
    left = isinstance(kept, (KeptCheckpoints, DiskCheckpoints)) and bool(kept._kept)
    grads = [parameter.grad for parameter in session.parameters.values()]
    return not left and all(grad is None or not grad.any() for grad in grads)
