"""Where the inputs of checkpointed blocks wait for the backward pass: in memory or on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import mlx.core as mx

from edgetune.owned import ScratchFolder
from edgetune_mlx.load import load_arrays, save_arrays, scratch_folder


class Entries(ABC):
    """A stack of hidden states (B, S, D), empty again when a micro-batch is done."""

    def __enter__(self) -> Entries:
        """Begin a micro-batch."""
        return self

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what is left."""

    @abstractmethod
    def push(self, x: mx.array) -> None:
        """Keep a block's input."""

    @abstractmethod
    def pop(self) -> mx.array:
        """Return the input kept last and forget it."""


class InMemory(Entries):
    """The arrays themselves."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._kept: list[mx.array] = []

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what is left."""
        self._kept.clear()

    def push(self, x: mx.array) -> None:
        """Keep the array."""
        self._kept.append(x)

    def pop(self) -> mx.array:
        """Return the array."""
        return self._kept.pop()


class OnDisk(Entries):
    """Files in a folder of their own, which is gone when the micro-batch is done."""

    def __init__(self) -> None:
        """Make no folder yet."""
        self._folder: ScratchFolder | None = None
        self._kept: list[Path] = []

    def __enter__(self) -> Entries:
        """Make the folder."""
        self._folder = scratch_folder()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the folder."""
        self._kept.clear()
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def push(self, x: mx.array) -> None:
        """Write the array to a file."""
        assert self._folder is not None, "entries are pushed inside a with block"
        file = self._folder.path / f"{len(self._kept)}.safetensors"
        save_arrays(file, {"x": x})
        self._kept.append(file)

    def pop(self) -> mx.array:
        """Read the array back and remove its file."""
        file = self._kept.pop()
        x = load_arrays(file)["x"]
        mx.eval(x)
        file.unlink()
        return x
