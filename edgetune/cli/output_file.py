"""A file that a command writes: what cannot or must not be replaced is refused before any work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from edgetune.cli.options import FilePath, called
from edgetune.errors import UsageError
from edgetune.files import is_utf8
from edgetune.runs.folder import run_of

_PAGE: Final = b"<!doctype html"


class OutputFile(FilePath):
    """Where a file is written: a new one, or in place of one of its own kind.

    ``kind`` is what is written, ``is_one`` tells whether a file that is there is such a one. A link
    to a file stands for the file.
    """

    def __init__(self, kind: str, is_one: Callable[[Path], bool]) -> None:
        """Take what is written."""
        self._kind = kind
        self._is_one = is_one

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Return the place, if such a file can be written there."""
        path = super().convert(value, param, ctx)
        try:
            because = self._refused(path)
            place = path.resolve() if path.is_symlink() else path
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            because = f"it cannot be looked at: {getattr(error, 'strerror', None) or error}"
        if because:
            raise UsageError(
                f"{path} is not written: {because}. Choose another with {called(param)}."
            )
        return place

    def _refused(self, path: Path) -> str | None:
        if path.is_symlink() and not path.exists():
            return f"it is a link to {path.readlink()}, where nothing is"
        path = path.resolve()
        if path.is_dir():
            return "it is a folder"
        if path.exists() and not path.is_file():
            return "it is not a regular file, but a pipe, a socket or a device"
        if not is_utf8(path):
            return "its name is not UTF-8"
        if not path.parent.is_dir():
            return f"there is no folder {path.parent}"
        if not os.access(path.parent, os.W_OK):
            return f"nothing may be written to {path.parent}"
        if (run := run_of(path)) is not None and not _is_page_of(run, path):
            return f"it belongs to the run {run}"
        if path.exists() and path.stat().st_size and not self._is_one(path):
            return f"it exists and is not {self._kind}, so that it is not overwritten"
        return None


def page_option(flag: str, text: str) -> Callable[[Any], Any]:
    """Return the option for a page that a command writes."""
    return click.option(flag, type=OutputFile("a page", is_page), metavar="FILE", help=text)


def is_page(path: Path) -> bool:
    """Return whether a file is a page, ours or another's.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_PAGE)).lower() == _PAGE


def _is_page_of(run: Path, path: Path) -> bool:
    """Return whether a file stands where a run has its report, and other pages may lie."""
    return path.parent == run and path.suffix == ".html"
