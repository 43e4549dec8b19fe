"""Models with random weights in published shapes, written shard by shard without a framework.

    python tools/bench/models.py tinyllama-1.1b /tmp/models/tinyllama-1.1b
    python tools/bench/models.py tinyllama-1.1b /tmp/models/wide --set vocab_size=128256

The weights are normal with a deviation of 0.02 (norms are one), in bfloat16. A pool of 2^24 draws
is read from another place for every tensor: as random as a benchmark needs, at disk speed.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgetune.data.tokenizer import load_tokenizer
from edgetune.model import resolve
from edgetune.model.families import shape_of
from edgetune.profile import model_profile
from edgetune.shape import ModelShape, TensorShape
from edgetune.tensors.writer import Outgoing, write_safetensors

POOL = 1 << 24
SHARD_BYTES = 2_000_000_000
DEVIATION = 0.02


def write_model(
    name: str,
    folder: Path,
    changes: dict[str, Any],
    write: Callable[[Path, Sequence[Outgoing]], object] = write_safetensors,
) -> Path:
    """Write the model of a profile with some fields of its config changed; return its folder."""
    config = {**model_profile(name).config, **changes, "torch_dtype": "bfloat16"}
    shape = shape_of(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shards = list(_shards(shape))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write(folder / file, [_outgoing(tensor) for tensor in shard])
        index |= {tensor.name: file for tensor in shard}
    total = 2 * sum(tensor.size for shard in shards for tensor in shard)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def load_libraries() -> None:
    """Load what a run has loaded before its first tensor: a tokenizer, and what that imports."""
    folder = resolve("tiny").folder
    assert folder is not None
    load_tokenizer(folder)


def _shards(shape: ModelShape) -> Iterator[list[TensorShape]]:
    shard: list[TensorShape] = []
    for tensor in shape.tensors():
        if shard and 2 * (sum(x.size for x in shard) + tensor.size) > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _outgoing(tensor: TensorShape) -> Outgoing:
    return Outgoing(
        name=tensor.name,
        dtype="bfloat16",
        shape=tensor.shape,
        chunks=partial(tensor_values, tensor),
    )


def tensor_values(tensor: TensorShape) -> Iterator[NDArray[Any]]:
    """Yield the numbers of a tensor in pieces."""
    if tensor.kind == "norm" and tensor.name.endswith("weight"):
        yield np.ones(tensor.shape, ml_dtypes.bfloat16)
        return
    pool, left = _pool(), tensor.size
    start = zlib.crc32(tensor.name.encode()) % POOL
    while left:
        part = pool[start : start + left]
        yield part
        left, start = left - len(part), 0


@cache
def _pool() -> NDArray[Any]:
    draw = np.random.default_rng(0).standard_normal(POOL, np.float32) * DEVIATION
    return draw.astype(ml_dtypes.bfloat16)


def main() -> None:
    """Write one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("profile")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=NUMBER")
    given = parser.parse_args()
    changes = {field: int(number) for field, _, number in (x.partition("=") for x in given.set)}
    print(write_model(given.profile, given.folder, changes))


if __name__ == "__main__":
    main()
