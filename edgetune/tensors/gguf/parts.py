"""Models in several GGUF files: ``NAME-00001-of-00003.gguf`` and so on, as llama.cpp splits them.

The first part has the metadata of the model; tensors may be in any.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgetune.errors import ModelError
from edgetune.tensors.gguf.reader import GgufHeader, read_gguf
from edgetune.tensors.header import StoredTensor

_NAME: Final = re.compile(r"(?P<model>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)
MOST_PARTS: Final = 1024


def first_part(file: Path) -> Path:
    """Return the first file of a model that a file is a part of, by its name; else the file.

    Raises:
        ModelError: if the first one is not beside it.
    """
    found = _NAME.fullmatch(file.name)
    if found is None:
        return file
    first = _part(file, found, 1)
    if first != file and not first.is_file():
        raise ModelError(f"{file} is a part of a model, and {first.name} is not beside it.")
    return first


def read_parts(file: Path) -> GgufHeader:
    """Return the metadata and all tensors of a model, of which ``file`` is the first part.

    Raises:
        ModelError: if parts are missing or do not belong together; else as :func:`read_gguf`.
    """
    header = read_gguf(file)
    count = header.metadata.whole("split.count", 1)
    if count <= 1:
        return header
    found = _NAME.fullmatch(file.name)
    if found is None or int(found["count"]) != count or count > MOST_PARTS:
        raise ModelError(
            f"{file} is one of {count} parts of a model, and its name does not say where the others "
            "are: they are called NAME-00001-of-00003.gguf and so on. Name them so, or put them "
            "together with llama.cpp's `llama-gguf-split --merge`."
        )
    files = [_part(file, found, number) for number in range(1, count + 1)]
    missing = [part.name for part in files if not part.is_file()]
    if missing:
        raise ModelError(
            f"{file} is one of {count} parts of a model, and {len(missing)} are not beside it, "
            f"{missing[0]} first. Fetch or copy them too."
        )
    return _joined([header if part == file else read_gguf(part) for part in files])


def _part(file: Path, found: re.Match[str], number: int) -> Path:
    return file.with_name(f"{found['model']}-{number:05}-of-{found['count']}.gguf")


def _joined(parts: list[GgufHeader]) -> GgufHeader:
    first = parts[0]
    tensors: dict[str, StoredTensor] = {}
    for number, part in enumerate(parts):
        told = part.metadata.whole("split.no", -1), part.metadata.whole("split.count", 1)
        if told != (number, len(parts)):
            raise ModelError(
                f"{part.file} says that it is part {told[0] + 1} of {told[1]}, and its name says "
                f"{number + 1} of {len(parts)}. Fetch or copy the model again."
            )
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise ModelError(f"{part.file} has {sorted(twice)[0]} that an earlier part has too.")
        tensors |= part.tensors
    total = first.metadata.whole("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ModelError(
            f"The parts of {first.file} have {len(tensors)} tensors, and {total} are expected. "
            "Fetch or copy the model again."
        )
    return replace(first, tensors=tensors)
