"""Logs of one JSON object a line, which only grow; a line that was cut off does not count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgetune.files import replacing


def append_line(path: Path, value: Any) -> None:
    """Add one object to a log; it has left this process when this returns."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(value, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log, none if it is not there."""
    if not path.exists():
        return []
    return [line for text in _texts(path) if (line := _parsed(text)) is not None]


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> int:
    """Drop the lines that are not wanted or not whole; return how many there were."""
    if not path.exists():
        return 0
    texts = _texts(path)
    kept = [text for text in texts if (line := _parsed(text)) is not None and wanted(line)]
    if len(kept) < len(texts):
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), "utf-8", newline="\n")
    return len(texts) - len(kept)


def _texts(path: Path) -> list[str]:
    return path.read_text("utf-8", errors="replace").splitlines(keepends=True)


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text) if text.endswith("\n") else None
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None
