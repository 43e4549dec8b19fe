"""Rows that were not planned for, computed a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from edgetune.backend import DeviceOutOfMemoryError
from edgetune.buckets import bucket
from edgetune.data import MicroBatch
from edgetune.data.batch import split
from edgetune.errors import OutOfMemoryError
from edgetune.workflows.opened import Opened

R = TypeVar("R")


def in_parts(run: Opened, batch: MicroBatch, work: Callable[[Sequence[MicroBatch]], R]) -> R:
    """Return what ``work`` makes of a micro-batch that is cut into parts of a few rows.

    These rows may be longer than those of the plan: fewer of them are as many tokens. Where even
    they run out of memory, there are fewer still.

    Raises:
        OutOfMemoryError: if a single row is too much.
    """
    width, planned = batch.tokens.shape[1], run.plan.choice.micro_batch * run.plan.choice.context
    rows = max(1, min(len(batch.tokens), planned // bucket(width)))
    while True:
        try:
            return work(split((batch,), rows))
        except DeviceOutOfMemoryError as error:
            if rows == 1:
                raise OutOfMemoryError(
                    f"A row of {width} tokens does not fit: {error}. Close other programs, or "
                    "leave out what is longer than the rows that the run was planned for."
                ) from None
            rows //= 2
