"""What a hub says of a model, and which of its files are wanted: never pickles, never code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgetune.errors import ModelError, NetworkError
from edgetune.escapes import one_line, short
from edgetune.files import parsed_json
from edgetune.hub.client import Hub
from edgetune.hub.failures import BROKEN, told

LARGEST: Final = 1 << 25
"""Bytes of a description; a model of a thousand files has a quarter of a megabyte."""

_ONE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_SHARD: Final = re.compile(r"model(\.safetensors)?-\d+-of-\d+\.safetensors")
"""Qwen3.5 is published with the longer names."""
_BESIDES: Final = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer\.model|tokenizer_config\.json"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt"
    r"|processor_config\.json|(video_)?preprocessor_config\.json"
    r"|chat_template\.(jinja|json)|(LICEN[CS]E|NOTICE|USE_POLICY)(\.(md|txt))?"
)
_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a revision. ``digest`` is its SHA-256, or for small ones what git names it by."""

    name: str
    size: int
    digest: str

    @property
    def by_git(self) -> bool:
        """Whether the digest is git's, a SHA-1 of a header and the content."""
        return _SHA1.fullmatch(self.digest) is not None

    @property
    def is_weights(self) -> bool:
        """Whether it holds tensors."""
        return self.name.endswith(".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One revision of a model: the files that are wanted of it, and what it says of itself."""

    model: str
    """As the hub spells it."""
    commit: str
    revision: str
    licence: str | None
    gated: bool
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def list_model(hub: Hub, model: str, revision: str) -> Listing:
    """Return what a hub says of a model.

    Raises:
        ModelError: if it is not there, or has no weights that can be used.
        NetworkError: if the hub cannot be asked.
    """
    try:
        with hub.open(hub.model_url(model, revision)) as answer:
            plain = parsed_json(answer.read(LARGEST))
    except BROKEN as error:
        raise told(error, hub, model, revision) from error
    except ValueError as error:
        raise NetworkError(_not_a_hub(hub, str(error))) from error
    return _listing(hub, model, revision, plain)


def _listing(hub: Hub, model: str, revision: str, plain: Any) -> Listing:
    if not isinstance(plain, dict) or not isinstance(plain.get("siblings"), list):
        raise NetworkError(_not_a_hub(hub, "it lists no files"))
    commit = plain.get("sha")
    if not isinstance(commit, str) or not _SHA1.fullmatch(commit):
        raise NetworkError(_not_a_hub(hub, f"its revision is {short(commit)}"))
    entries = [entry for entry in plain["siblings"] if isinstance(entry, dict)]
    names = [str(entry.get("rfilename")) for entry in entries]
    wanted = _wanted(model, names)
    named = str(plain.get("id") or model)
    return Listing(
        model=named if named.lower() == model.lower() else model,
        commit=commit,
        revision=revision,
        licence=_licence(plain),
        gated=plain.get("gated") not in {None, False},
        files=tuple(_file(hub, e) for e in entries if str(e.get("rfilename")) in wanted),
    )


def _wanted(model: str, names: Iterable[str]) -> frozenset[str]:
    """Return the names of the files that are fetched.

    Raises:
        ModelError: if there are no weights in safetensors files, saying what there is instead.
    """
    names = frozenset(names)
    weights = {_ONE} if _ONE in names else {n for n in names if _SHARD.fullmatch(n)}
    if weights and _ONE not in weights:
        weights.add(_INDEX)
    if not weights or not weights <= names or "config.json" not in names:
        raise ModelError(f"{model} {_instead(names)}")
    return frozenset(weights | {name for name in names if _BESIDES.fullmatch(name)})


def _instead(names: frozenset[str]) -> str:
    if "adapter_config.json" in names:
        return "holds an adapter, not a model. Fetch the model that it was trained on."
    if any(name.endswith(".gguf") for name in names):
        return (
            "has GGUF files and no safetensors. Pull it with Ollama or LM Studio and give "
            "ollama:NAME or the file, or fetch the model that it was made from."
        )
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return (
            "has its weights only as pickles, which can run code and are never fetched. Look for "
            "a copy with safetensors files."
        )
    return "has no config.json with safetensors files beside it: it is no model that can be tuned."


def _licence(plain: Mapping[str, Any]) -> str | None:
    card = plain.get("cardData")
    licence = card.get("license") if isinstance(card, dict) else None
    if isinstance(card, dict) and licence == "other":
        licence = card.get("license_name") or licence
    tags = plain.get("tags")
    tagged = [str(t)[8:] for t in tags if str(t).startswith("license:")] if tags else []
    found = licence or next(iter(tagged), None)
    return None if found is None else one_line(str(found))[:60]


def _file(hub: Hub, entry: Mapping[str, Any]) -> RemoteFile:
    large = entry.get("lfs")
    source = large if isinstance(large, dict) else {}
    digest = source.get("sha256") or source.get("oid") or entry.get("blobId")
    size = source.get("size", entry.get("size"))
    known = _SHA256 if source else _SHA1
    if not isinstance(digest, str) or not known.fullmatch(digest) or not _is_size(size):
        raise NetworkError(_not_a_hub(hub, f"no checksum or size of {entry.get('rfilename')}"))
    return RemoteFile(name=str(entry["rfilename"]), size=int(str(size)), digest=digest)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 50


def _not_a_hub(hub: Hub, found: str) -> str:
    return f"{hub.endpoint} does not answer as a hub of models does: {found}. Check --endpoint."
