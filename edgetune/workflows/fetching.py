"""Fetching a model: what it would be, before anything is taken; then the files, checked."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgetune.errors import DiskError, ModelError, UsageError
from edgetune.escapes import short
from edgetune.hub import Hub, Listing, Progress, download, hub_of, list_model, read_remote
from edgetune.hub.download import missing_bytes
from edgetune.model import LocalModel, shape_of
from edgetune.model.gguf_stores import STORES
from edgetune.model.hub import cache_entry, is_hub_id
from edgetune.model.near_names import meant, proposed
from edgetune.profile import hub_ids, model_names, proposal
from edgetune.units import format_bytes

_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")
_SPARE = 1 << 28
"""Bytes of a disk that are left free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model that can be fetched: nothing of it was written yet."""

    hub: Hub
    listing: Listing
    entry: Path
    missing: int
    """Bytes that are not here yet."""
    parameters: int
    taken_as: str | None = None
    """Which model a name was taken as, where it is not its own."""

    @property
    def free(self) -> int:
        """Bytes that are free where it would lie."""
        return shutil.disk_usage(_existing(self.entry)).free


def offer(ref: str, *, revision: str = "main", endpoint: str | None = None) -> Offer:
    """Return what fetching a model would be.

    Raises:
        UsageError: if it is no name of a model on a hub, or the network is forbidden.
        ModelError: if the hub has no such model, or it is of a type that is not supported.
        NetworkError: if the hub cannot be asked.
    """
    model, taken_as = _on_hub(ref)
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise UsageError(f"{short(revision)} is not the name of a revision: main, a tag, a commit.")
    hub = hub_of(endpoint)
    listing = list_model(hub, model, revision)
    config = read_remote(hub, listing, "config.json")
    entry = cache_entry(listing.model)
    return Offer(
        hub=hub,
        listing=listing,
        entry=entry,
        missing=missing_bytes(listing, entry),
        parameters=shape_of(_object(config, listing)).parameters,
        taken_as=taken_as,
    )


def fetch(offered: Offer, progress: Progress = lambda _name, _bytes: None) -> LocalModel:
    """Fetch a model that was offered, and return it, its tensors checked against its config.

    Raises:
        DiskError: if there is no room, or a file cannot be written.
        ModelError: if a file came damaged, or the files do not fit each other.
        NetworkError: if the connection fails for good; what came is kept.
    """
    if offered.missing and offered.free < offered.missing + _SPARE:
        raise DiskError(
            f"{format_bytes(offered.missing)} would be fetched to {offered.entry}, and "
            f"{format_bytes(offered.free)} are free there. Make room, or set HF_HUB_CACHE to a "
            "folder on another disk."
        )
    folder = download(offered.hub, offered.listing, offered.entry, progress)
    return LocalModel.open(folder, ref=offered.listing.model)


def _on_hub(ref: str) -> tuple[str, str | None]:
    """Return a model's id on the hub, and what its name was taken as."""
    if ref.startswith(STORES):
        store, _, name = ref.partition(":")
        raise UsageError(
            f"{short(ref)} is what {store} has here, which --model takes as it is. To have {store} "
            f"get it: `ollama pull {name}`, or LM Studio's own search."
        )
    if ref.lower() in model_names():
        if known := hub_ids().get(ref.lower()):
            return known, None
        raise UsageError(f"{ref} comes with edgetune: --model {ref} needs no fetching.")
    if is_hub_id(ref) and "/" in ref:
        return ref, None
    if found := meant(ref):
        known = hub_ids()[found.profile]
        return known, f"{ref} is taken as {found.profile} ({known})"
    raise ModelError(
        f"{short(ref)} is not the name of a model on a hub, which is like Qwen/Qwen3-0.6B. "
        f"{proposal('models', proposed(ref))}"
    )


def _object(data: bytes, listing: Listing) -> dict[str, object]:
    try:
        config = json.loads(data.decode())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"The config.json of {listing.model} is not a JSON object.")
    return config


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
