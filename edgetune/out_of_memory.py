"""Which errors of a framework mean that memory ran out, turned into the protocol's own."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgetune.backend import DeviceOutOfMemoryError


@dataclass(frozen=True, slots=True)
class FailedAllocations:
    """How a framework says that an allocation failed.

    ``signs`` are parts of the messages of a RuntimeError that says so, ``kinds`` errors that mean
    nothing else.
    """

    signs: tuple[str, ...]
    kinds: tuple[type[RuntimeError], ...] = ()

    def include(self, error: BaseException) -> bool:
        """Tell an allocation that failed from other errors."""
        if isinstance(error, (MemoryError, *self.kinds)):
            return True
        if isinstance(error, OSError):
            return error.errno == errno.ENOMEM
        return isinstance(error, RuntimeError) and any(sign in str(error) for sign in self.signs)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise the protocol's error where an allocation failed."""
        try:
            yield
        except DeviceOutOfMemoryError:
            raise
        except (MemoryError, OSError, RuntimeError) as error:
            if not self.include(error):
                raise
            lines = str(error).splitlines() or ["the system gave no more memory"]
            raise DeviceOutOfMemoryError(lines[0]) from None
