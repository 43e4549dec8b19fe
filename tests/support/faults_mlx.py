"""Faults in MLX: calls that fail, of any function or operator that makes arrays or evaluates them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any
from unittest.mock import patch

import mlx.core as mx

ERRORS = (
    lambda: RuntimeError("[malloc] Unable to allocate 1048576 bytes."),
    lambda: RuntimeError("[metal::malloc] Attempting to allocate 1048576 bytes which is greater"),
    lambda: RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"),
    lambda: RuntimeError(
        "[METAL] Command buffer execution failed: Impacting Interactivity "
        "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
    ),
    MemoryError,
)

EVALUATIONS = ("eval", "async_eval")
SETTINGS = ("memory", "cache", "is_", "set_", "get_", "synchronize", "default_", "new_", "iinfo")
"""Parts of the names of functions that make no array."""

OPERATORS = (
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__",
    "__rtruediv__", "__matmul__", "__neg__", "__pow__", "__eq__", "__lt__", "__le__", "__gt__",
    "__ge__", "__getitem__", "astype", "reshape", "flatten", "square", "sum", "max", "transpose",
)  # fmt: skip


class Fault:
    """Fails the call of a number, an evaluation when half of it is done."""

    def __init__(self, at: int, *, sticky: bool = False) -> None:
        """Fail one call; ``sticky``: and all that follow, for as long as it is on."""
        self.count = 0
        self._at, self._sticky = at, sticky
        self._patches = ExitStack()

    def __enter__(self) -> Fault:
        """Begin to count."""
        for name in dir(mx):
            function = getattr(mx, name)
            if type(function) is type(mx.add) and not any(part in name for part in SETTINGS):
                self._patches.enter_context(patch.object(mx, name, self._counted(name, function)))
        for name in OPERATORS:
            function = getattr(mx.array, name)
            self._patches.enter_context(patch.object(mx.array, name, self._counted(name, function)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take everything back."""
        self._patches.close()

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self._at and (self.count >= self._at if self._sticky else self.count == self._at):
                if name in EVALUATIONS:
                    function(*args[: len(args) // 2])
                raise ERRORS[self._at % len(ERRORS)]()
            return function(*args, **kwargs)

        return call
