"""The weights of a model folder: one safetensors file, or several and their index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgetune.errors import ModelError
from edgetune.files import read_bounded
from edgetune.tensors.header import StoredTensor, read_header

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
LARGEST_JSON: Final = 1 << 24
"""Bytes; the index of the largest models has half as many."""
_LISTED: Final = 8


def has_weights(folder: Path) -> bool:
    """Return whether a folder has safetensors weights or an index of them."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a folder by the names that they have there.

    Raises:
        ModelError: if there are no safetensors weights, or files are missing or damaged.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _sharded(folder)
    pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    if pickled:
        raise ModelError(
            f"{folder} has its weights only as pickles ({pickled[0]}), which can run code and are "
            f"never opened. Get a version with {SINGLE}, or convert it where you trust it "
            "(transformers' save_pretrained writes safetensors)."
        )
    raise ModelError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}.")


def _sharded(folder: Path) -> dict[str, StoredTensor]:
    index = read_json(folder / INDEX)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
        raise ModelError(f"{folder / INDEX} has no weight_map. Fetch or copy the file again.")
    files = sorted(set(where.values()))
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise ModelError(f"{folder / INDEX} names files outside its folder: {outside[0]!r}.")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks files of the model: {listing(missing, ', ')}. Fetch it.")
    tensors = [read_header(folder / name) for name in files]
    stored = {name: tensor for part in tensors for name, tensor in part.items()}
    _check_index(folder / INDEX, where, stored)
    return stored


def _check_index(index: Path, where: Mapping[str, str], stored: Mapping[str, StoredTensor]) -> None:
    problems = [
        f"{name} is not in {file}"
        for name, file in where.items()
        if name not in stored or stored[name].file.name != file
    ]
    if problems:
        raise ModelError(f"{index} does not fit its files: {listing(problems, '; ')}.")


def read_json(file: Path) -> object:
    """Return the content of a JSON file.

    Raises:
        ModelError: if it cannot be read.
    """
    try:
        return json.loads(read_bounded(file, LARGEST_JSON).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}. Fetch or copy it again.") from error


def listing(items: list[str], separator: str = "\n  - ") -> str:
    """Return the first items as text, and how many more there are."""
    more = len(items) - _LISTED
    shown = [*items[:_LISTED], f"and {more} more"] if more > 0 else items
    return separator.join(shown)
