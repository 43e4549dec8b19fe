"""The local Hugging Face cache, read only: ``models--ORG--NAME/{refs,snapshots}``."""

from __future__ import annotations

import os
import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(text: str) -> bool:
    """Return whether a text can be the id of a model on the hub (``organisation/name``)."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def cache_folder() -> Path:
    """Return the folder that the Hugging Face tools keep downloads in, by their variables."""
    if given := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(given).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "huggingface" / "hub"


def cache_entry(hub_id: str) -> Path:
    """Return where a model of the hub lies in the cache, or would lie."""
    return cache_folder() / f"models--{hub_id.replace('/', '--')}"


def cached_snapshot(hub_id: str) -> Path | None:
    """Return the folder of a model's files in the cache, ``None`` when it is not there.

    The revision is ``main``; without one, the only revision that is there.
    """
    entry = cache_entry(hub_id)
    folders = [folder.parent for folder in entry.glob("snapshots/*/config.json")]
    reference = entry / "refs" / "main"
    if reference.is_file():
        revision = reference.read_text(encoding="utf-8").strip()
        return next((folder for folder in folders if folder.name == revision), None)
    return folders[0] if len(folders) == 1 else None
