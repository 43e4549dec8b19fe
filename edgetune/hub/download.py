"""Files into the cache: resumed where they broke off, checked before they count."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final
from urllib.error import HTTPError

from edgetune.errors import EdgetuneError, ModelError, UsageError
from edgetune.files import sync, unwritable, write_text
from edgetune.hub.client import Hub
from edgetune.hub.failures import BROKEN, is_passing, told
from edgetune.hub.listing import Listing, RemoteFile
from edgetune.owned import lock

TRIES: Final = 5
"""Attempts without a new byte before a file is given up."""
_CHUNK: Final = 1 << 20
_PIECE: Final = 1 << 16
"""Bytes that are waited for at once: as many are lost at most when a process ends."""
_LARGEST_READ: Final = 1 << 24
_ELSEWHERE: Final = "set HF_HUB_CACHE to a folder on another disk"

Progress = Callable[[str, int], None]
"""Told of a file's name and of the bytes of it that came or were checked since."""


def download(
    hub: Hub,
    listing: Listing,
    entry: Path,
    progress: Progress = lambda _name, _bytes: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch what is missing of a revision into a cache ``entry`` and return the snapshot's folder.

    The revision's name points to it only when all files are there and checked; what broke off is
    gone on with the next time.

    Raises:
        ModelError: if a file is not what the hub said.
        NetworkError: if the connection fails for good.
        DiskError: if a file cannot be written.
    """
    snapshot = entry / "snapshots" / listing.commit
    try:
        snapshot.mkdir(parents=True, exist_ok=True)
        (entry / "blobs").mkdir(exist_ok=True)
        for file in sorted(listing.files, key=lambda file: file.size):
            blob = _fetched(_Transfer(hub, listing, file, progress, sleep), entry / "blobs")
            _point(snapshot / file.name, blob)
        if listing.revision != listing.commit:
            reference = entry / "refs" / listing.revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, listing.commit)
    except OSError as error:
        raise unwritable("The model", entry, error, _ELSEWHERE) from error
    return snapshot


def read_remote(hub: Hub, listing: Listing, name: str) -> bytes:
    """Return the content of a small file of a revision, checked, without keeping it.

    Raises:
        ModelError: if it is not what the hub said.
        NetworkError: if it cannot be had.
    """
    file = next(file for file in listing.files if file.name == name)
    try:
        with hub.open(hub.file_url(listing.model, listing.commit, name)) as answer:
            data = bytes(answer.read(min(file.size, _LARGEST_READ) + 1))
    except BROKEN as error:
        raise told(error, hub, listing.model, listing.revision) from error
    digest = _hash_of(file, len(data))
    digest.update(data)
    if digest.hexdigest() != file.digest:
        raise ModelError(_damaged(file, listing, digest.hexdigest()))
    return data


def missing_bytes(listing: Listing, entry: Path) -> int:
    """Return how many bytes of a revision are not in a cache entry yet."""
    return sum(file.size - min(_held(entry / "blobs", file), file.size) for file in listing.files)


def _held(blobs: Path, file: RemoteFile) -> int:
    for path in (blobs / file.digest, _partial(blobs, file)):
        with suppress(OSError):
            return path.stat().st_size
    return 0


def _partial(blobs: Path, file: RemoteFile) -> Path:
    return blobs / f"{file.digest}.edgetune.incomplete"


class _Transfer:
    """One file on its way."""

    def __init__(
        self,
        hub: Hub,
        listing: Listing,
        file: RemoteFile,
        progress: Progress,
        sleep: Callable[[float], None],
    ) -> None:
        self.hub, self.listing, self.file = hub, listing, file
        self._progress, self._sleep = progress, sleep

    def came(self, count: int) -> None:
        """Tell of bytes."""
        self._progress(self.file.name, count)

    def append(self, partial: IO[bytes]) -> None:
        """Write what is missing behind what is there, going on where a connection breaks."""
        failed = 0
        while (start := partial.seek(0, os.SEEK_END)) < self.file.size:
            try:
                self._receive(partial, start)
            except BROKEN as error:
                if not self._may_try_again(error, partial):
                    raise self._told(error) from error
                problem = self._told(error)
            else:
                problem = ModelError(self._too_short(partial.tell()))
            failed = 0 if partial.seek(0, os.SEEK_END) > start else failed + 1
            if failed >= TRIES:
                raise problem
            if failed:
                self._sleep(min(2.0**failed, 30.0))

    def _too_short(self, size: int) -> str:
        return (
            f"{self.file.name} of {self.listing.model} ends after {size} bytes of "
            f"{self.file.size}. Try again later."
        )

    def _receive(self, partial: IO[bytes], start: int) -> None:
        url = self.hub.file_url(self.listing.model, self.listing.commit, self.file.name)
        with self.hub.open(url, start) as answer:
            if start and answer.status != 206:  # the whole file, whatever was asked for
                partial.seek(0)
                partial.truncate()
            left = self.file.size - partial.tell()
            while left > 0 and (data := answer.read(min(_PIECE, left))):
                _write(partial, data)
                left -= len(data)
                self.came(len(data))

    def _may_try_again(self, error: Exception, partial: IO[bytes]) -> bool:
        """Say whether another try may go better, from the start if nothing follows what is here."""
        if not isinstance(error, HTTPError) or error.code != 416:
            return is_passing(error)
        partial.seek(0)
        partial.truncate()
        return True

    def _told(self, error: Exception) -> EdgetuneError:
        return told(error, self.hub, self.listing.model, self.listing.revision)


class _DiskFailedError(Exception):
    """The disk failed, not the connection, both of which the system tells as ``OSError``."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _write(file: IO[bytes], data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise _DiskFailedError(error) from error


def _fetched(transfer: _Transfer, blobs: Path) -> Path:
    """Return the blob of a file, fetched if need be and checked.

    Raises:
        ModelError: if it is not what the hub said: it is removed then.
    """
    file = transfer.file
    blob, partial = blobs / file.digest, _partial(blobs, file)
    if blob.is_file():
        if _digest(blob, file, transfer.came) == file.digest:
            return blob
        blob.unlink()
    with partial.open("ab+") as held:
        _lock(held, transfer)
        transfer.came(held.seek(0, os.SEEK_END))
        try:
            transfer.append(held)
        except _DiskFailedError as error:
            raise unwritable(file.name, blobs, error.error, _ELSEWHERE) from error
    if (found := _digest(partial, file)) != file.digest:
        partial.unlink()
        raise ModelError(_damaged(file, transfer.listing, found))
    sync(partial)
    partial.replace(blob)
    return blob


def _lock(file: IO[bytes], transfer: _Transfer) -> None:
    try:
        lock(file)
    except (BlockingIOError, PermissionError):
        raise UsageError(
            f"Another process is fetching {transfer.file.name} of {transfer.listing.model}. Wait "
            "for it, or stop it."
        ) from None
    except OSError:  # a file system without locks
        return


def _digest(path: Path, file: RemoteFile, came: Callable[[int], None] = lambda _: None) -> str:
    digest = _hash_of(file, path.stat().st_size)
    with path.open("rb") as content:
        while data := content.read(_CHUNK):
            digest.update(data)
            came(len(data))
    return str(digest.hexdigest())


def _hash_of(file: RemoteFile, size: int) -> Any:
    """Return what a file's content is put into to get its digest."""
    if not file.by_git:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def _damaged(file: RemoteFile, listing: Listing, found: str) -> str:
    return (
        f"{file.name} of {listing.model} came damaged: its checksum is {found[:12]}…, expected "
        f"{file.digest[:12]}…. Nothing of it was kept. Fetch the model again."
    )


def _point(name: Path, blob: Path) -> None:
    """Let a snapshot's name mean a blob: a relative link, a copy where there are no links."""
    if name.is_symlink() and name.resolve() == blob.resolve():
        return
    name.unlink(missing_ok=True)
    try:
        name.symlink_to(os.path.relpath(blob, name.parent))
    except OSError:
        shutil.copyfile(blob, name)
