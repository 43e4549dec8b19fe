"""Headers: read exactly when whole, refused with the file's name when not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgetune.errors import ModelError
from edgetune.tensors.header import read_header

Entries = dict[str, Any]


def _write(file: Path, entries: Entries | bytes, data: bytes) -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def _two_tensors() -> Entries:
    return {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F16", "shape": [2, 2], "data_offsets": [8, 16]},
        "__metadata__": {"format": "pt"},
    }


def test_offsets_are_absolute_and_find_the_bytes(tmp_path: Path) -> None:
    arrays = {
        "one": np.arange(6, dtype=np.float32).reshape(2, 3),
        "two": np.arange(4, dtype=np.int64),
        "none": np.zeros((0, 3), np.float16),
    }
    file = tmp_path / "model.safetensors"
    save_file(arrays, file)
    raw = file.read_bytes()

    header = read_header(file)

    assert set(header) == set(arrays)
    for name, array in arrays.items():
        tensor = header[name]
        assert (tensor.name, tensor.shape, tensor.dtype) == (name, array.shape, str(array.dtype))
        assert raw[tensor.start : tensor.end] == array.tobytes()
        assert tensor.nbytes == array.nbytes


def _overlapping(entries: Entries) -> None:
    entries["b"]["data_offsets"] = [4, 12]


def _gap(entries: Entries) -> None:
    entries["b"] = {"dtype": "F16", "shape": [2], "data_offsets": [12, 16]}


def _wrong_size(entries: Entries) -> None:
    entries["a"]["shape"] = [3]


def _negative(entries: Entries) -> None:
    entries["a"]["data_offsets"] = [-8, 0]


def _beyond(entries: Entries) -> None:
    entries["b"] = {"dtype": "F16", "shape": [400], "data_offsets": [8, 808]}


def _no_shape(entries: Entries) -> None:
    del entries["a"]["shape"]


def _fraction(entries: Entries) -> None:
    entries["a"]["shape"] = [2.0]


def _not_a_table(entries: Entries) -> None:
    entries["a"] = "F32"


def _endless_shape(entries: Entries) -> None:
    entries["a"]["shape"] = [1] * 100_000


def _huge_shape(entries: Entries) -> None:
    entries["a"]["shape"] = [10**4000, 0]


def _true(entries: Entries) -> None:
    entries["a"]["shape"] = [True, 2]


def _infinite(entries: Entries) -> None:
    entries["a"]["data_offsets"] = [0, float("inf")]


def _listed(entries: Entries) -> None:
    entries["__metadata__"] = []


@pytest.mark.parametrize(
    ("damage", "because"),
    [
        (_overlapping, "'b' overlaps another tensor"),
        (_gap, "'b' follows a gap"),
        (_wrong_size, r"'a' of shape \[3\] cannot be 8 bytes"),
        (_negative, "'a' has no valid shape and offsets"),
        (_beyond, "it should be .* bytes long and is"),
        (_no_shape, "'a' has no valid shape and offsets"),
        (_fraction, "'a' has no valid shape and offsets"),
        (_not_a_table, "'a' has no valid shape and offsets"),
        (_endless_shape, "'a' has no valid shape and offsets"),
        (_huge_shape, "'a' has no valid shape and offsets"),
        (_true, "'a' has no valid shape and offsets"),
        (_infinite, "'a' has no valid shape and offsets"),
        (_listed, "its __metadata__ is not a JSON object"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    tmp_path: Path, damage: Callable[[Entries], None], because: str
) -> None:
    entries = _two_tensors()
    damage(entries)
    file = _write(tmp_path / "model.safetensors", entries, bytes(16))

    with pytest.raises(ModelError, match=rf"model\.safetensors is damaged: .*{because}"):
        read_header(file)


@pytest.mark.parametrize("kept", [0, 3, 8, 40, -17, -16, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    file = _write(tmp_path / "model.safetensors", _two_tensors(), bytes(16))
    file.write_bytes(file.read_bytes()[:kept])

    with pytest.raises(ModelError, match=r"damaged: .* Fetch or copy the file again\."):
        read_header(file)


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    file = _write(tmp_path / "model.safetensors", _two_tensors(), bytes(17))

    with pytest.raises(ModelError, match=r"should be .* bytes long"):
        read_header(file)


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**12, 2**64 - 1])
def test_an_absurd_header_length_is_not_believed(tmp_path: Path, length: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(64))

    with pytest.raises(ModelError, match=f"header cannot be {length} bytes long"):
        read_header(file)


@pytest.mark.parametrize(
    "text",
    [
        b"not json",
        b"[1, 2]",
        b"\xff\xfe{}",
        b'{"a": 1, "a": 2}',
        b"[" * 50_000,
        b"[1" + b"0" * 5000,
    ],
    ids=["text", "list", "encoding", "twice", "deep", "digits"],
)
def test_a_header_that_is_not_a_table_is_refused(tmp_path: Path, text: bytes) -> None:
    file = _write(tmp_path / "model.safetensors", text, b"")

    with pytest.raises(ModelError, match="is damaged: its header is not"):
        read_header(file)


@pytest.mark.parametrize(
    "dtype", ["F4", ["F32"], {}, 7, None, "F" * 10_000], ids=lambda x: repr(x)[:9]
)
def test_an_unknown_number_type_is_named(tmp_path: Path, dtype: object) -> None:
    entries = {"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 1]}}
    file = _write(tmp_path / "model.safetensors", entries, bytes(1))

    with pytest.raises(ModelError, match="'a' is of unknown type") as caught:
        read_header(file)
    assert repr(dtype)[:20] in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_name_cannot_steer_a_terminal(tmp_path: Path) -> None:
    entries = {"a\x1b[2J\nError: \u202e": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    file = _write(tmp_path / "model.safetensors", entries, bytes(1))

    with pytest.raises(ModelError, match=r"tensor 'a\\x1b\[2J\\nError: \\u202e' is of"):
        read_header(file)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_header(tmp_path / "model.safetensors")


@given(content=st.binary(max_size=200), claimed=st.integers(0, 300))
def test_no_content_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, claimed: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    file.write_bytes(claimed.to_bytes(8, "little") + content)

    try:
        header = read_header(file)
    except ModelError:
        return
    assert all(tensor.end <= file.stat().st_size for tensor in header.values())
