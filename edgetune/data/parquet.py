"""The rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from edgetune.data.arrow_rows import ROWS, read_batches
from edgetune.data.chunks import Faults, ReadingError
from edgetune.data.unpack import needed


def read_parquet(stream: BufferedReader, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:  # noqa: ARG001
    """Yield the number, counted from 1, and the values of each row.

    Raises:
        ReadingError: if the file is damaged, or naming a column that cannot be read.
        DataError: if the package for it is missing.
    """
    parquet: Any = needed("pyarrow.parquet")
    arrow: Any = needed("pyarrow")
    try:
        file = parquet.ParquetFile(stream)
    except arrow.ArrowException as error:
        raise ReadingError(f"it cannot be read: {error}") from error
    # threads of its own may outlive the interpreter, which ends the process by a signal
    batches = file.iter_batches(batch_size=ROWS, use_threads=False)
    yield from read_batches(file.schema_arrow.names, batches)
