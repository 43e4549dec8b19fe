"""The numbers of the format, beside those of the ``gguf`` package."""

from __future__ import annotations

import gguf
import pytest

from edgetune.tensors.gguf.types import (
    BY_ID,
    BY_NAME,
    DEFAULT_ALIGNMENT,
    MAGIC,
    QUANTIZED,
    VALUE_TYPES,
    VERSION,
)


def test_every_tensor_type_has_its_number_block_and_bytes() -> None:
    published = {
        kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType
    }
    ours = {number: (kind.name, kind.block, kind.nbytes) for number, kind in BY_ID.items()}

    assert ours == published
    assert set(QUANTIZED) <= set(BY_NAME)


def test_every_kind_of_metadata_has_its_number() -> None:
    published = {kind.value: kind.name.lower() for kind in gguf.GGUFValueType}

    assert {number: kind.name for number, kind in VALUE_TYPES.items()} == published
    assert int.from_bytes(MAGIC, "little") == gguf.GGUF_MAGIC
    assert (VERSION, DEFAULT_ALIGNMENT) == (gguf.GGUF_VERSION, gguf.GGUF_DEFAULT_ALIGNMENT)


def test_rows_are_whole_blocks() -> None:
    assert BY_NAME["Q4_1"].row_bytes(64) == 2 * 20
    assert BY_NAME["Q6_K"].bits == 6.5625
    with pytest.raises(ValueError, match="Q4_K: a row of 64"):
        BY_NAME["Q4_K"].row_bytes(64)
