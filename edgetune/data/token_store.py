"""Tokenized rows as flat arrays: of a block on its way, of a file in memory, of a file on disk.

Legend: R rows, T tokens of all of them together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgetune.data.encode import Learned

Integers = NDArray[np.int64]
Counts = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenStore:
    """R rows: ``tokens`` (T,), ``mask`` (T,) true where a token is learned, and of each row
    (R,) its tokens, its tokens under loss, a hash of both arrays, and the line it is from.
    ``firsts`` (R,) are the tokens of the document with the better answer, which comes first: 0 in
    rows of plain answers and of worse ones alone.
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]
    lengths: Counts
    loss_tokens: Counts
    digests: NDArray[np.uint64]
    lines: Integers
    firsts: Counts

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)


DTYPES = {
    "tokens": np.dtype(np.int32),
    "mask": np.dtype(np.bool_),
    "lengths": np.dtype(np.int32),
    "loss_tokens": np.dtype(np.int32),
    "digests": np.dtype(np.uint64),
    "lines": np.dtype(np.int64),
    "firsts": np.dtype(np.int32),
}
_TOO_LARGE_FOR_MEMORY = {"tokens", "mask", "lines"}
_SAMPLE = 64
"""Rows that are compared with their hashes when an entry is opened."""


def token_store_of(rows: Sequence[Learned], lines: Sequence[int]) -> TokenStore:
    """Return rows as columns. The first token of a row is never learned: nothing predicts it."""
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    stops = np.cumsum(lengths, dtype=np.int64).tolist()
    total = stops[-1] if stops else 0
    tokens = np.concatenate([np.zeros(0, np.int32), *(row.tokens for row in rows)])
    mask = np.zeros(total, np.bool_)
    digests = bytearray()
    loss_tokens = []
    for row, start, stop in zip(rows, [0, *stops], stops, strict=False):
        for first, last in row.ranges:
            mask[start + max(first, 1) : start + last] = True
        own = mask[start:stop]
        loss_tokens.append(np.count_nonzero(own))
        digests += digest_of(tokens[start:stop], own, row.first)
    return TokenStore(
        tokens,
        mask,
        lengths,
        np.array(loss_tokens, np.int32),
        np.frombuffer(digests, "<u8").astype(np.uint64),
        np.array(lines, np.int64),
        np.array([row.first for row in rows], np.int32),
    )


class TokenStoreWriter:
    """Grows columns block by block, in memory or, with a folder, on disk.

    Files on disk are read back through the handles that wrote them: whoever deletes them from
    the folder takes nothing away.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Start with no rows.

        Raises:
            OSError: if the folder cannot be written.
        """
        self._folder = folder
        self._streams: list[IO[bytes]] = []
        for name in DTYPES:
            self._streams.append(BytesIO() if folder is None else (folder / name).open("w+b"))

    def append(self, block: TokenStore) -> None:
        """Add the rows of a block."""
        for stream, name in zip(self._streams, DTYPES, strict=True):
            stream.write(getattr(block, name).data)

    def finish(self) -> TokenStore:
        """Return everything that was added; in memory without a copy, else from the disk."""
        if self._folder is None:
            buffers = (
                stream.getbuffer() for stream in self._streams if isinstance(stream, BytesIO)
            )
            pairs = zip(buffers, DTYPES.values(), strict=True)
            return TokenStore(*(np.frombuffer(buffer, dtype) for buffer, dtype in pairs))
        for stream in self._streams:
            stream.flush()
            os.fsync(stream.fileno())
        return TokenStore(*map(_read, self._streams, DTYPES))

    def close(self) -> None:
        """Close the files."""
        for stream in self._streams:
            stream.close()


def read_token_store(folder: Path) -> TokenStore:
    """Return the columns in a folder; those with an entry a token stay on disk.

    Raises:
        OSError: if they are not there.
    """
    with ExitStack() as held:
        streams = [held.enter_context((folder / name).open("rb")) for name in DTYPES]
        return TokenStore(*map(_read, streams, DTYPES))


def content_digest(store: TokenStore) -> str:
    """Return a hash of all rows: of how long they are, and of the hashes of what is in them."""
    digest = blake2b(digest_size=16)
    for column in (store.lengths, store.loss_tokens, store.digests, store.firsts):
        digest.update(column.data)
    return digest.hexdigest()


def is_consistent(store: TokenStore) -> bool:
    """Return whether the columns belong together, and some rows to their hashes."""
    rows, total = len(store), int(store.lengths.sum(dtype=np.int64))
    columns = (store.loss_tokens, store.digests, store.lines, store.firsts)
    if any(len(column) != rows for column in columns):
        return False
    if len(store.tokens) != total or len(store.mask) != total:
        return False
    stops = np.cumsum(store.lengths, dtype=np.int64)
    for row in range(0, rows, max(rows // _SAMPLE, 1)):
        part = slice(int(stops[row] - store.lengths[row]), int(stops[row]))
        digest = digest_of(store.tokens[part], store.mask[part], int(store.firsts[row]))
        if int.from_bytes(digest, "little") != int(store.digests[row]):
            return False
    return True


def digest_of(tokens: NDArray[np.int32], mask: NDArray[np.bool_], first: int) -> bytes:
    """Return the hash of a row; ``first`` as in :class:`TokenStore`."""
    digest = blake2b(tokens.data, digest_size=8)
    digest.update(mask.data)
    if first:
        digest.update(first.to_bytes(4, "little"))
    return digest.digest()


def _read(stream: IO[bytes], name: str) -> NDArray[Any]:
    size, dtype = os.fstat(stream.fileno()).st_size, DTYPES[name]
    if name in _TOO_LARGE_FOR_MEMORY and size:
        return np.memmap(stream, dtype, mode="r")
    stream.seek(0)
    return np.fromfile(stream, dtype)
