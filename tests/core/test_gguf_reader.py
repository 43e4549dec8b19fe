"""Headers of GGUF files: read exactly when whole, refused with the file's name when not."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gguf_files import assembled, entry, listed, random_blocks, text, write_gguf
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import ModelError
from edgetune.tensors.gguf.reader import is_gguf, read_gguf

NAME = entry("general.name", 8, text("a"))
TENSOR = listed("a", (2, 4), 0, 0)
WHOLE = assembled([NAME], [TENSOR], b"\1" * 32)


def _read(folder: Path, content: bytes) -> object:
    file = folder / "model.gguf"
    file.write_bytes(content)
    return read_gguf(file)


def test_metadata_and_tensors_are_where_the_package_wrote_them(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    blocks = random_blocks("Q4_K", 4).reshape(2, -1)
    metadata = {
        "llama.block_count": 3,
        "llama.rope.freq_base": 0.5,
        "general.name": "Häuser",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": ["a", "", "ö" * 300],
        "tokenizer.ggml.scores": [0.25, -1.0],
    }
    tensors = {"one": (values, "F32"), "two": (blocks, "Q4_K"), "three": (values, "F16")}
    file = write_gguf(tmp_path / "model.gguf", "llama", metadata, tensors)
    raw = file.read_bytes()

    header = read_gguf(file)

    found, stored = header.metadata, header.tensors
    assert is_gguf(file)
    assert found.whole("llama.block_count") == 3
    assert found.number("llama.rope.freq_base") == 0.5
    assert found.text("general.name") == "Häuser"
    assert found.flag("tokenizer.ggml.add_bos_token", False) is True
    assert found.items("tokenizer.ggml.tokens", str) == ["a", "", "ö" * 300]
    assert found.items("tokenizer.ggml.scores", float) == [0.25, -1.0]
    assert (stored["one"].shape, stored["one"].dtype) == ((3, 4), "float32")
    assert (stored["two"].shape, stored["two"].dtype) == ((2, 512), "Q4_K")
    assert raw[stored["one"].start : stored["one"].end] == values.tobytes()
    assert raw[stored["two"].start : stored["two"].end] == blocks.tobytes()
    assert stored["three"].nbytes == 24


@pytest.mark.parametrize(
    ("content", "because"),
    [
        (b"", "byte 4 and has 0"),
        (WHOLE[:10], "should go on to byte"),
        (WHOLE[:-1], "ends at byte"),
        (assembled([NAME], [TENSOR], magic=b"GGML"), "not a GGUF file"),
        (assembled([NAME], [TENSOR], version=1), "version 1; versions 2 and 3"),
        (assembled([NAME], [TENSOR], version=3 << 24), "big-endian"),
        (assembled([NAME], [TENSOR], counts=(1 << 63, 1)), "cannot have 9223372036854775808 ten"),
        (assembled([NAME], [TENSOR], counts=(1, 1 << 63)), "cannot have 9223372036854775808 met"),
        (assembled([NAME], [TENSOR], counts=(9, 1)), "damaged"),
        (assembled([NAME, NAME], []), "'general.name' is written twice"),
        (assembled([struct.pack("<Q", 1 << 62)], []), "a key cannot be 4611686018427387904"),
        (assembled([entry("a", 8, struct.pack("<Q", 1 << 40))], []), "'a' cannot be 1099511627776"),
        (assembled([entry("a", 8, text(b"\xff"))], []), "'a' is not UTF-8"),
        (assembled([text(b"\xff\xfe") + b"\0" * 8], []), "a key is not UTF-8"),
        (assembled([entry("a", 77, b"")], []), "'a' is of unknown kind 77"),
        (assembled([entry("a", 9, struct.pack("<IQ", 9, 1 << 20))], []), "'a' is a list of lists"),
        (assembled([entry("a", 9, struct.pack("<IQ", 4, 1 << 40))], []), "1099511627776 items in"),
        (assembled([entry("a", 9, struct.pack("<IQ", 4, 1 << 20))], []), "should go on to byte"),
        (assembled([entry("a", 9, struct.pack("<IQ", 8, 1 << 20))], []), "damaged"),
        (assembled([entry("a", 9, struct.pack("<IQQ", 8, 1, 1 << 50))], []), "a text cannot be"),
        (assembled([entry("a", 9, struct.pack("<IQ", 33, 0))], []), "unknown kind 33"),
        (assembled([], [TENSOR, TENSOR], b"\0" * 64), "'a' is listed twice"),
        (assembled([], [listed("a", (), 0, 0)], b"\0" * 64), "cannot have 0 axes"),
        (assembled([], [listed("a", (1,) * 5, 0, 0)], b"\0" * 64), "cannot have 5 axes"),
        (assembled([], [listed("a", (0,), 0, 0)], b"\0" * 64), "cannot have the shape"),
        (assembled([], [listed("a", (1 << 39,) * 4, 0, 0)], b"\0" * 64), "ends at byte"),
        (assembled([], [listed("a", (1 << 63,), 0, 0)], b"\0" * 64), "cannot have the shape"),
        (assembled([], [listed("a", (2,), 4711, 0)], b"\0" * 64), "of type 4711"),
        (assembled([], [listed("a", (32,), 4, 0)], b"\0" * 64), "which Ollama 0.11 wrote for MX"),
        (assembled([], [listed("a", (48,), 2, 0)], b"\0" * 64), "no whole blocks of Q4_0"),
        (assembled([], [listed("a", (2,), 0, 8)], b"\0" * 64), "begin at a multiple of 32"),
        (assembled([], [listed("a", (2,), 0, 1 << 63)], b"\0" * 64), "ends at byte"),
        (
            assembled([], [listed("a", (16,), 0, 0), listed("b", (2,), 0, 32)], b"\0" * 96),
            "'b' overlaps another tensor",
        ),
        (
            assembled([entry("general.alignment", 4, struct.pack("<I", 24))], [TENSOR], b"\0" * 64),
            "aligned to 24 bytes",
        ),
        (
            assembled([entry("general.alignment", 4, struct.pack("<I", 0))], [TENSOR], b"\0" * 64),
            "aligned to 0 bytes",
        ),
        (
            assembled([entry("general.alignment", 8, text("32"))], [TENSOR], b"\0" * 64),
            "general.alignment must be a whole number; found '32'",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(
    tmp_path: Path, content: bytes, because: str
) -> None:
    with pytest.raises(ModelError, match=r"model\.gguf") as raised:
        _read(tmp_path, content)

    assert because in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert not is_gguf(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match=r"none\.gguf cannot be read"):
        read_gguf(tmp_path / "none.gguf")


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ModelError):
        _read(tmp_path, WHOLE[:length])


@given(data=st.data())
def test_flipped_bits_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    with suppress(ModelError):
        _read(tmp_path_factory.mktemp("flipped"), bytes(content))
