"""Model folders for tests: tiny, random and written by the reference implementation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from edgetune.model import shape_of

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 11,
    "max_position_embeddings": 32,
}

Arrays = dict[str, NDArray[Any]]


def arrays_for(config: Mapping[str, Any]) -> Arrays:
    """Return random tensors with the names and shapes that a config asks for."""
    draw = np.random.default_rng(0)
    tensors = shape_of(config).tensors()
    return {t.name: draw.normal(size=t.shape).astype(np.float32) for t in tensors}


def write_folder(
    folder: Path,
    config: Mapping[str, Any] = TINY,
    *,
    arrays: Arrays | None = None,
    rename: Callable[[str], str] = str,
    shards: int = 1,
) -> Path:
    """Write a model folder and return it; ``rename`` changes the stored names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stored = {rename(n): a for n, a in (arrays or arrays_for(config)).items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors")
    else:
        _write_shards(folder, stored, shards)
    return folder


def _write_shards(folder: Path, stored: Arrays, shards: int) -> None:
    names = list(stored)
    where: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: stored[name] for name in names[shard::shards]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
