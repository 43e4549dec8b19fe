"""Where the inputs of checkpointed blocks wait for the backward pass: in memory or on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import mlx.core as mx

from edgetune.owned import ScratchFolder
from edgetune_mlx.load import load_arrays, save_arrays, scratch_folder

States = list[mx.array]
"""Hidden states (B, S, D) in parts of their positions: one, or the tiles of a block."""


class Entries(ABC):
    """A stack of hidden states, empty again when a micro-batch is done."""

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
    def push(self, x: States) -> None:
        """Keep a block's input."""

    @abstractmethod
    def pop(self) -> States:
        """Return the input kept last and forget it."""


class InMemory(Entries):
    """The arrays themselves, in a list of their own."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._kept: list[States] = []

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop what is left."""
        self._kept.clear()

    def push(self, x: States) -> None:
        """Keep the arrays."""
        self._kept.append([*x])

    def pop(self) -> States:
        """Return the arrays."""
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

    def push(self, x: States) -> None:
        """Write the arrays to a file."""
        assert self._folder is not None, "entries are pushed inside a with block"
        file = self._folder.path / f"{len(self._kept)}.safetensors"
        save_arrays(file, {str(number): part for number, part in enumerate(x)})
        self._kept.append(file)

    def pop(self) -> States:
        """Read the arrays back and remove their file."""
        file = self._kept.pop()
        found = load_arrays(file)
        x = [found[str(number)] for number in range(len(found))]
        mx.eval(x)
        file.unlink()
        return x
