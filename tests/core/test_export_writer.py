"""Files written as a stream are what the safetensors library writes and reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

from edgetune.adapters.stored import number_type, read_tensor
from edgetune.exporters.safetensors_writer import Outgoing, write_safetensors
from edgetune.model.safetensors import read_header

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
