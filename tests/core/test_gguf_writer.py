"""GGUF files that are written here, read by the ``gguf`` package."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgetune.tensors.gguf.types import BY_NAME
from edgetune.tensors.gguf.writer import OutgoingBlocks, Value, file_bytes, write_gguf

METADATA = {
    "general.architecture": Value("string", "llama"),
    "llama.block_count": Value("uint32", 2),
    "llama.rope.freq_base": Value("float32", 500000.0),
    "tokenizer.ggml.add_bos_token": Value("bool", True),
    "tokenizer.ggml.tokens": Value("string", ["a", "", "▁Größe", "😀"]),
    "tokenizer.ggml.scores": Value("float32", [0.0, -1.5]),
    "tokenizer.ggml.token_type": Value("int32", []),
}


def _tensor(name: str, values: NDArray[np.float32], chunk: int = 2) -> OutgoingBlocks:
    def chunks() -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(values), chunk):
            yield values[start : start + chunk].reshape(-1).view(np.uint8)

    return OutgoingBlocks(name=name, type=BY_NAME["F32"], shape=values.shape, chunks=chunks)


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {
        "a": draw.normal(size=(5, 3)).astype(np.float32),
        "b": draw.normal(size=7).astype(np.float32),
        "c": draw.normal(size=(2, 8)).astype(np.float32),
    }
    path, tensors = tmp_path / "m.gguf", [_tensor(name, x) for name, x in arrays.items()]
    write_gguf(path, METADATA, tensors)
    reader = gguf.GGUFReader(path)

    for key, value in METADATA.items():
        found = reader.fields[key].contents()
        assert found == (pytest.approx(value.content) if key.endswith("base") else value.content)
    assert [tensor.name for tensor in reader.tensors] == list(arrays)
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, arrays[tensor.name])
    assert path.stat().st_size == file_bytes(METADATA, tensors)


def test_too_few_bytes_are_an_error(tmp_path: Path) -> None:
    short = partial(iter, [np.zeros(4, np.uint8)])
    tensor = OutgoingBlocks(name="x", type=BY_NAME["F32"], shape=(2, 2), chunks=short)

    with pytest.raises(ValueError, match="x: 4 bytes, expected 16"):
        write_gguf(tmp_path / "m.gguf", {}, [tensor])
