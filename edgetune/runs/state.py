"""``state.json``: what a checkpoint says of itself, and the proof that nothing of it changed.

It holds the SHA-256 of every other file of the checkpoint and, as ``checksum``, its own: that of
all its other fields, whatever their order and the spaces between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgetune.errors import ModelError, UsageError
from edgetune.events import RunState
from edgetune.files import load_json, sha256_file, sha256_json, write_json
from edgetune.runs.facts import VERSION, SavedState
from edgetune.settings.parse import checked, from_plain

STATE: Final = "state.json"
CHECKSUM: Final = "checksum"
LARGEST: Final = 1 << 20
"""Bytes; a state has a few thousand."""


class DamagedCheckpointError(ModelError):
    """A checkpoint is not what was written; the one before it may be."""


def write_state(folder: Path, facts: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write the facts of a run and the checksums of a checkpoint's ``files`` by name.

    Raises:
        OSError: if it cannot be written.
    """
    state = {**facts, "files": dict(files)}
    write_json(folder / STATE, {**state, CHECKSUM: sha256_json(state)})


def read_state(checkpoint: Path) -> SavedState:
    """Return what a checkpoint says of itself, after comparing every file with its checksum.

    Raises:
        DamagedCheckpointError: naming the files that are missing or not as they were written.
        ModelError: if it is of another version.
    """
    try:
        state: dict[str, Any] = checked(dict, load_json(checkpoint / STATE, LARGEST), STATE)
        own = state.pop(CHECKSUM, None)
        if own is None and state.get("version") == 1:
            raise _of_another_version(checkpoint, 1)
        if own != sha256_json(state):
            raise _damaged(checkpoint, [STATE])
        if state["version"] != VERSION:
            raise _of_another_version(checkpoint, state["version"])
        digests = checked(dict, state["files"], "files")
        saved = SavedState(
            progress=from_plain(RunState, state["progress"], "progress"),
            **{name: checked(str, state[name], name) for name in ("plan", "data", "model")},
            versions=checked(dict, state["versions"], "versions"),
            files=digests,
        )
    except (OSError, ValueError, KeyError, UsageError) as error:
        raise _damaged(checkpoint, [STATE]) from error
    wrong = [name for name, digest in digests.items() if _digest(checkpoint / name) != digest]
    if wrong:
        raise _damaged(checkpoint, wrong)
    return saved


def _damaged(checkpoint: Path, names: list[str]) -> DamagedCheckpointError:
    verb = "is" if len(names) == 1 else "are"
    return DamagedCheckpointError(
        f"The checkpoint {checkpoint} is not whole: {', '.join(names)} {verb} missing or damaged."
    )


def _of_another_version(checkpoint: Path, version: object) -> ModelError:
    return ModelError(
        f"The checkpoint {checkpoint} is of version {version}; expected {VERSION}. Resume it with "
        "the edgetune that wrote it."
    )


def _digest(file: Path) -> str | None:
    """Return the checksum of a file, None if it cannot be read."""
    try:
        return sha256_file(file) if file.is_file() else None
    except OSError:
        return None
