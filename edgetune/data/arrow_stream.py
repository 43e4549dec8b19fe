"""The rows of an Arrow file: a stream, as ``datasets`` saves it, or the file format."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from edgetune.data.arrow_rows import read_batches
from edgetune.data.chunks import Faults, ReadingError
from edgetune.data.unpack import needed

_FILE_MARK = b"ARROW1"


def read_arrow(stream: BufferedReader, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:  # noqa: ARG001
    """Yield the number, counted from 1, and the values of each row.

    Raises:
        ReadingError: if the file is damaged, or naming a column that cannot be read.
        DataError: if the package for it is missing.
    """
    ipc: Any = needed("pyarrow.ipc")
    arrow: Any = needed("pyarrow")
    is_file = stream.peek(len(_FILE_MARK)).startswith(_FILE_MARK)
    try:
        if is_file:
            file = ipc.open_file(stream)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
            names = file.schema.names
        else:
            batches = ipc.open_stream(stream)
            names = batches.schema.names
    except (arrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise ReadingError(f"it cannot be read: {error}") from error
    try:
        yield from read_batches(names, map(_validated, batches))
    except (UnicodeDecodeError, MemoryError) as error:  # in names and lengths
        raise ReadingError(f"it is damaged: {error}") from error


def _validated(batch: Any) -> Any:
    """Return a batch whose buffers agree with its lengths: a damaged one would be read beyond its end."""
    batch.validate(full=True)
    return batch
