"""Blocks become the numbers that the ``gguf`` package makes of them, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as published
from gguf_files import random_blocks

from edgetune.tensors.gguf.dequantize import dequantize
from edgetune.tensors.gguf.finite import HALVES, all_finite
from edgetune.tensors.gguf.types import FLOATS, QUANTIZED


@pytest.mark.parametrize("kind", QUANTIZED)
def test_any_bits_mean_what_the_package_says(kind: str) -> None:
    blocks = random_blocks(kind, 4096)

    ours = dequantize(kind, blocks)

    expected = published(blocks, gguf.GGMLQuantizationType[kind])
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", FLOATS)
def test_plain_numbers_stay_what_they_are(kind: str) -> None:
    values = np.array([[0.5, -1.25, 3.0, 1e-3]], np.float32)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).view(np.uint8)

    ours = dequantize(kind, blocks)

    np.testing.assert_array_equal(ours, published(blocks, gguf.GGMLQuantizationType[kind]))


def test_every_exponent_of_mxfp4() -> None:
    blocks = np.zeros((256, 17), np.uint8)
    blocks[:, 0], blocks[:, 1:] = np.arange(256), 0x7F
    with np.errstate(over="ignore"):
        ours = dequantize("MXFP4", blocks)
        expected = published(blocks, gguf.GGMLQuantizationType.MXFP4)

    np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_one_scale_that_is_no_number_is_found(kind: str) -> None:
    for place in HALVES.get(kind, (0,)):
        for bits in (0x7C00, 0xFC01) if kind in HALVES else (0x00FD,):
            blocks = random_blocks(kind, 64)
            assert all_finite(kind, blocks.reshape(-1).data)

            width = 2 if kind in HALVES else 1
            blocks[17, place : place + width] = list(bits.to_bytes(2, "little"))[:width]

            assert not all_finite(kind, blocks.reshape(-1).data)
            with np.errstate(over="ignore", invalid="ignore"):
                worst = dequantize(kind, blocks | np.uint8(0x77) * (kind == "MXFP4"))
            assert not np.isfinite(worst).all()
