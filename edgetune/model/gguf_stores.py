"""Where other tools keep their GGUF files: Ollama's store, LM Studio's folders, any folder of files.

Ollama names a model ``[HOST/][NAMESPACE/]MODEL[:TAG]``; a manifest of that path lists layers by
their digests, one of which is the GGUF file. LM Studio has ``PUBLISHER/MODEL/FILE.gguf``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgetune.errors import ModelError
from edgetune.escapes import one_line, short
from edgetune.model.weights import listing, read_json
from edgetune.tensors.gguf.parts import first_part

OLLAMA: Final = "ollama:"
LMSTUDIO: Final = "lmstudio:"
STORES: Final = (OLLAMA, LMSTUDIO)

_REGISTRY: Final = "registry.ollama.ai"
_MODEL: Final = "application/vnd.ollama.image.model"
_ADAPTER: Final = "application/vnd.ollama.image.adapter"
_PART: Final = re.compile(r"(?!\.)[\w.-]+")
_DIGEST: Final = re.compile(r"sha256[:-]([0-9a-f]{64})")
_PROJECTOR: Final = "mmproj"
"""What the names of vision towers begin with, which lie beside their models."""


def names_file(ref: str) -> bool:
    """Return whether this is what a GGUF file is called."""
    return ref.startswith(STORES) or ref.lower().endswith(".gguf")


def file_of(ref: str) -> Path:
    """Return the GGUF file of a model in a store: ``ollama:NAME`` or ``lmstudio:PUBLISHER/MODEL``.

    Raises:
        ModelError: if there is none.
    """
    if ref.startswith(OLLAMA):
        return _ollama(ref.removeprefix(OLLAMA))
    return _lmstudio(ref.removeprefix(LMSTUDIO))


def only_file(folder: Path) -> Path | None:
    """Return the one GGUF file of a folder, or the first part of one; ``None`` if there is none.

    Raises:
        ModelError: if there are several models.
    """
    files = sorted(folder.glob("*.gguf"))
    found = [file for file in files if not file.name.lower().startswith(_PROJECTOR)]
    found = list(dict.fromkeys(map(first_part, found)))
    if len(found) > 1:
        names = listing([one_line(file.name) for file in found], ", ")
        raise ModelError(
            f"{folder} has several GGUF files: {names}. Give one of them: --model FILE."
        )
    return found[0] if found else None


def _ollama(name: str) -> Path:
    folders = [folder for folder in _ollama_folders() if (folder / "manifests").is_dir()]
    path = _manifest(name)
    for folder in folders:
        manifest = folder / "manifests" / path
        if manifest.is_file():
            return _blob(folder, name, manifest)
    where = listing([str(folder) for folder in folders or _ollama_folders()], ", ")
    known = listing(sorted(_ollama_names(folders)), ", ")
    raise ModelError(
        f"Ollama has no model {one_line(name)} on this machine: looked in {where}. "
        + (f"There are: {known}." if known else "Set OLLAMA_MODELS if its models are elsewhere.")
    )


def _ollama_folders() -> list[Path]:
    if given := os.environ.get("OLLAMA_MODELS"):
        return [Path(given).expanduser()]
    return [Path("~/.ollama/models").expanduser(), Path("/usr/share/ollama/.ollama/models")]


def _manifest(name: str) -> Path:
    """Return the path of a name's manifest below ``manifests``."""
    before, _, tag = (
        name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "latest")
    )
    parts = before.split("/")
    if not 1 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in (*parts, tag)):
        raise ModelError(
            f"{short(name)} is not the name of a model of Ollama. One is written MODEL, MODEL:TAG "
            "or NAMESPACE/MODEL:TAG, as `ollama list` shows it."
        )
    host, namespace = [_REGISTRY, "library"][: 3 - len(parts)], parts[:-1]
    return Path(*host, *namespace, parts[-1], tag)


def _blob(folder: Path, name: str, manifest: Path) -> Path:
    content = read_json(manifest)
    layers = content.get("layers") if isinstance(content, dict) else None
    listed = layers if isinstance(layers, list) else []
    found: list[dict[str, Any]] = [layer for layer in listed if isinstance(layer, dict)]
    if any(layer.get("mediaType") == _ADAPTER for layer in found):
        raise ModelError(
            f"ollama:{one_line(name)} is a model with an adapter, which would be left out. "
            "Give the model that it was made from."
        )
    digests = [str(x.get("digest")) for x in found if x.get("mediaType") == _MODEL]
    match = _DIGEST.fullmatch(digests[0]) if len(digests) == 1 else None
    if match is None:
        raise ModelError(
            f"{manifest} lists no model, or several. Pull ollama:{one_line(name)} again."
        )
    blob = folder / "blobs" / f"sha256-{match[1]}"
    if not blob.is_file():
        raise ModelError(f"{blob} is missing. Pull ollama:{one_line(name)} again.")
    return blob


def _ollama_names(folders: list[Path]) -> Iterator[str]:
    """Yield the names of the models that are there, as ``ollama list`` shows them."""
    for folder in folders:
        for manifest in (folder / "manifests").glob("*/*/*/*"):
            host, namespace, model, tag = manifest.parts[-4:]
            front = "" if host == _REGISTRY else f"{host}/"
            middle = "" if not front and namespace == "library" else f"{namespace}/"
            yield one_line(f"{front}{middle}{model}:{tag}")


def _lmstudio(name: str) -> Path:
    parts = name.split("/")
    if len(parts) not in {2, 3} or not all(_PART.fullmatch(part) for part in parts):
        raise ModelError(
            f"{short(name)} is not a model of LM Studio. One is written PUBLISHER/MODEL, or "
            "PUBLISHER/MODEL/FILE.gguf."
        )
    for root in _lmstudio_folders():
        place = root.joinpath(*parts)
        if place.is_file():
            return place
        if place.is_dir() and (file := only_file(place)):
            return file
    where = listing([str(folder) for folder in _lmstudio_folders()], ", ")
    raise ModelError(
        f"LM Studio has no GGUF file of {one_line(name)} on this machine: looked in {where}. "
        "Give the file or its folder: --model FILE."
    )


def _lmstudio_folders() -> list[Path]:
    homes = [Path("~/.lmstudio").expanduser(), Path("~/.cache/lm-studio").expanduser()]
    try:
        pointer = Path("~/.lmstudio-home-pointer").expanduser().read_text(encoding="utf-8").strip()
        homes.insert(0, Path(pointer))
    except (OSError, ValueError):
        pass
    return [home / "models" for home in homes]
