"""The merged model, as a folder that transformers and everything built on it loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgetune.exporters.base import Exported, ExportRequest
from edgetune.exporters.folder import folder_bytes, needed_bytes, new_folder
from edgetune.exporters.merge import merged_tensors
from edgetune.exporters.updates import Merge, merge_of
from edgetune.model.config import FloatName
from edgetune.model.published import written_plain
from edgetune.model.weights import INDEX, SINGLE
from edgetune.tensors.writer import Outgoing, write_safetensors

SHARD_BYTES: Final = 5_000_000_000

_COPIED: Final = (
    "generation_config.json",
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model",
    "chat_template.*", "additional_chat_templates/*.jinja",
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
"""What a model needs besides config and weights, and what its licence wants passed on."""


def export_hf(request: ExportRequest) -> Exported:
    """Write the base with the adapter merged into it; one run of rows is held at a time.

    Raises:
        UsageError: if the method cannot be merged or the output folder cannot be made.
        CheckFailedError: if a merged weight cannot be written in the output's number format.
    """
    merged = Merged.of(request)
    with new_folder(request.output, merged.needed) as folder:
        merged.write(folder)
        request.verify(folder)
        nbytes = folder_bytes(folder)
    return Exported(folder=request.output, nbytes=nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The files of a merged model, about to be written; ``needed`` is their size in bytes."""

    shards: Mapping[str, Sequence[Outgoing]]
    copied: Sequence[Path]
    config: Mapping[str, object]
    source: Path
    needed: int

    @classmethod
    def of(cls, request: ExportRequest) -> Merged:
        """Return what a request asks for; no tensor is read yet.

        Raises:
            UsageError: if the method cannot be merged.
        """
        model = request.model
        merge = merge_of(request.adapter, model)
        tensors = merged_tensors(request, merge)
        limit = SHARD_BYTES if request.shard_bytes is None else request.shard_bytes
        copied = companions(model.folder)
        dtype = request.dtype or model.shape.dtype
        return cls(
            shards=_named(list(_split(tensors, limit))),
            copied=copied,
            config={"torch_dtype": dtype}
            | _config(_announced(written_plain(model.config), merge), dtype),
            source=model.folder,
            needed=needed_bytes((x.nbytes for x in tensors), (f.stat().st_size for f in copied)),
        )

    def write(self, folder: Path) -> None:
        """Write everything.

        Raises:
            CheckFailedError: if a merged weight cannot be written in the output's number format.
        """
        for name, shard in self.shards.items():
            write_safetensors(folder / name, shard)
        if len(self.shards) > 1:
            _write_json(folder / INDEX, _index(self.shards))
        _write_json(folder / "config.json", self.config)
        _copy(self.copied, self.source, folder)
        if self.source.is_file():
            from edgetune.data.gguf_tokenizer import save_gguf_tokenizer

            save_gguf_tokenizer(self.source, folder)


def _split(tensors: Sequence[Outgoing], limit: int) -> Iterator[list[Outgoing]]:
    shard: list[Outgoing] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield shard


def _named(shards: Sequence[list[Outgoing]]) -> dict[str, list[Outgoing]]:
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    count = len(shards)
    return {f"model-{i:05}-of-{count:05}.safetensors": x for i, x in enumerate(shards, 1)}


def _index(shards: Mapping[str, Sequence[Outgoing]]) -> dict[str, Any]:
    where = {tensor.name: name for name, shard in shards.items() for tensor in shard}
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def _announced(config: Mapping[str, object], merge: Merge) -> Mapping[str, object]:
    """Return a config with what the merge changes, where the language model's fields are."""
    text = config.get("text_config")
    if isinstance(text, dict):
        return {**config, "text_config": {**text, **merge.config}}
    return {**config, **merge.config}


def _config(config: Mapping[str, object], dtype: FloatName) -> dict[str, object]:
    """Return the base's config with the number format that was written.

    ``auto_map`` is left out: it names code of the base's folder, which is not handed on.
    """
    written: dict[str, object] = {
        name: value for name, value in config.items() if name != "auto_map"
    }
    for name, value in written.items():
        if name in {"dtype", "torch_dtype"}:
            written[name] = dtype
        elif isinstance(value, dict) and name.endswith("_config"):
            written[name] = _config(value, dtype)
    return written


def companions(folder: Path) -> list[Path]:
    """Return the files of a model's folder that a copy of it needs besides config and weights."""
    return sorted({path for pattern in _COPIED for path in folder.glob(pattern) if path.is_file()})


def _copy(paths: Sequence[Path], source: Path, target: Path) -> None:
    for path in paths:
        place = target / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
