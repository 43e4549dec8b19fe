"""Files written as a stream are what the safetensors library writes and reads."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from disks import full_disk
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

from edgetune.files import sha256_file
from edgetune.tensors.header import read_header
from edgetune.tensors.reader import number_type, read_tensor, read_tensors
from edgetune.tensors.writer import CHUNK_ELEMENTS, Outgoing, write_safetensors, write_scratch

TYPES = ("bool", "uint8", "int64", "float8_e4m3fn", "float16", "bfloat16", "float32", "float64")


def _outgoing(name: str, values: NDArray[Any]) -> Outgoing:
    def chunks() -> Iterator[NDArray[Any]]:
        yield from values if values.ndim else [values]

    return Outgoing(name=name, dtype=values.dtype.name, shape=values.shape, chunks=chunks)


@given(
    st.lists(st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=6)
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[str, list[int]]]
) -> None:
    draw = np.random.default_rng(0)
    arrays = {
        f"tensor {i} \u00e4": draw.integers(0, 2, shape).astype(number_type(dtype))
        for i, (dtype, shape) in enumerate(kinds)
    }
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    write_safetensors(path, [_outgoing(name, values) for name, values in arrays.items()])
    stored = read_header(path)

    assert stored.keys() == arrays.keys()
    for name, values in arrays.items():
        found = read_tensor(stored[name])
        assert (found.dtype, found.shape) == (values.dtype, values.shape)
        assert found.tobytes() == values.tobytes()
        assert stored[name].start % number_type(stored[name].dtype).itemsize == 0
    with safe_open(path, "numpy") as file:
        assert set(file.keys()) == arrays.keys()


def test_chunks_of_another_size_or_type_are_a_bug(tmp_path: Path) -> None:
    def outgoing(values: NDArray[Any]) -> Outgoing:
        return Outgoing(name="x", dtype="float32", shape=(3,), chunks=lambda: iter([values]))

    with pytest.raises(ValueError, match="x: 8 bytes of values, expected 12"):
        write_safetensors(tmp_path / "x", [outgoing(np.zeros(2, np.float32))])
    with pytest.raises(ValueError, match="a chunk of float64, expected float32"):
        write_safetensors(tmp_path / "x", [outgoing(np.zeros(3))])


def test_values_in_memory_are_converted_and_never_copied_whole(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(3 * CHUNK_ELEMENTS, dtype=np.float64).reshape(-1, 64))
    tensors = [Outgoing.of("x", values, "float32"), Outgoing.of("step", np.array(7))]
    tracemalloc.start()
    write_safetensors(tmp_path / "x.safetensors", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * 4 * CHUNK_ELEMENTS < values.nbytes / 2
    found = load_file(tmp_path / "x.safetensors")
    assert np.array_equal(found["x"], values.astype(np.float32))
    assert found["step"].shape == ()
    assert found["step"] == 7


def test_the_checksum_is_the_files(tmp_path: Path) -> None:
    tensors = [Outgoing.of("x", np.arange(5.0)), Outgoing.of("y", np.arange(3, dtype=np.int8))]
    digest = write_safetensors(tmp_path / "x.safetensors", tensors)
    assert digest == sha256_file(tmp_path / "x.safetensors")
    assert read_tensors(tmp_path / "x.safetensors").keys() == {"x", "y"}


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "x.safetensors"
    if before is not None:
        path.write_bytes(before)
    with full_disk(1 << 16), pytest.raises(OSError, match="too large"):
        write_safetensors(path, [Outgoing.of("x", np.zeros(1 << 16))])
    assert {file.read_bytes() for file in tmp_path.iterdir()} == ({before} if before else set())


def test_no_memory_leaves_what_was_there(tmp_path: Path) -> None:
    def chunks() -> Iterator[NDArray[Any]]:
        yield np.zeros(2)
        yield np.zeros(1 << 50)

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"what was there")
    outgoing = Outgoing(name="x", dtype="float64", shape=(3,), chunks=chunks)
    with pytest.raises(MemoryError):
        write_safetensors(path, [outgoing])
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"what was there"]


def test_scratch_is_a_file_of_the_same_format(tmp_path: Path) -> None:
    write_scratch(tmp_path / "x", [Outgoing.of("x", np.arange(3, dtype=ml_dtypes.bfloat16))], "pt")
    assert read_tensors(tmp_path / "x")["x"].tolist() == [0, 1, 2]
