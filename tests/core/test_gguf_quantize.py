"""Quantized rows beside the reference quantizers: simple formats bit for bit, K-quants in error."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import libgguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edgetune.tensors.gguf.dequantize import dequantize
from edgetune.tensors.gguf.quantize import quantized
from edgetune.tensors.gguf.types import BY_NAME

Floats = NDArray[np.float32]

SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
ROWS, INPUTS = 24, 1024


def _normal(draw: np.random.Generator) -> Floats:
    return draw.normal(0, 0.02, (ROWS, INPUTS)).astype(np.float32)


def _heavy(draw: np.random.Generator) -> Floats:
    return (draw.standard_t(3, (ROWS, INPUTS)) * 0.02).astype(np.float32)


def _rounded(draw: np.random.Generator) -> Floats:
    """Numbers that bfloat16 has, as most published weights are."""
    return (_normal(draw).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _one_sided(draw: np.random.Generator) -> Floats:
    return np.abs(_normal(draw))


def _outliers(draw: np.random.Generator) -> Floats:
    rows = _normal(draw)
    rows[:, ::300] *= 30
    return rows


def _channels(draw: np.random.Generator) -> Floats:
    """Each input has a scale of its own, as behind a norm."""
    return _normal(draw) * draw.lognormal(0, 1, INPUTS).astype(np.float32)


CASES = [_normal, _heavy, _rounded, _one_sided, _outliers, _channels]


def _reference(rows: Floats, kind: str) -> NDArray[np.uint8]:
    encoded = libgguf.quantize_rows(rows, gguf.GGMLQuantizationType[kind])
    return np.asarray(encoded).view(np.uint8).reshape(len(rows), -1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", SIMPLE)
def test_simple_formats_equal_both_references(
    kind: str, case: Callable[[np.random.Generator], Floats]
) -> None:
    rows = case(np.random.default_rng(0))
    found = quantized(rows, BY_NAME[kind])

    np.testing.assert_array_equal(found, _reference(rows, kind))
    np.testing.assert_array_equal(found, gguf.quantize(rows, gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_plain_formats_round_to_the_nearest(kind: str) -> None:
    rows = _heavy(np.random.default_rng(1))
    expected = gguf.quantize(rows, gguf.GGMLQuantizationType[kind]).view(np.uint8)

    np.testing.assert_array_equal(quantized(rows, BY_NAME[kind]), expected.reshape(ROWS, -1))


def _published(rows: Floats) -> Floats:
    """What the published quantizers weigh a number by: its size and its group's."""
    groups = np.square(rows).reshape(-1, 32)
    weights = np.sqrt(groups) + np.sqrt(groups.mean(-1, keepdims=True))
    return weights.reshape(rows.shape)


@pytest.mark.parametrize("weigh", [np.ones_like, np.abs, np.square, _published])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_err_no_more_than_the_reference(
    kind: str, case: Callable[[np.random.Generator], Floats], weigh: Callable[[Floats], Floats]
) -> None:
    rows = case(np.random.default_rng(2))

    def error(encoded: NDArray[np.uint8]) -> float:
        values = gguf.dequantize(encoded, gguf.GGMLQuantizationType[kind])
        return float((weigh(rows) * np.square(values - rows, dtype=np.float64)).sum())

    ours, theirs = error(quantized(rows, BY_NAME[kind])), error(_reference(rows, kind))
    assert 0 < ours <= 1.02 * theirs


@pytest.mark.parametrize("kind", [*SIMPLE, *K_QUANTS])
def test_our_reader_reads_what_is_written(kind: str) -> None:
    encoded = quantized(_normal(np.random.default_rng(3)), BY_NAME[kind])
    expected = gguf.dequantize(encoded, gguf.GGMLQuantizationType[kind])
    found = dequantize(kind, encoded.reshape(-1, BY_NAME[kind].nbytes))

    np.testing.assert_array_equal(found.reshape(ROWS, INPUTS), expected)


@pytest.mark.parametrize("kind", [*SIMPLE, *K_QUANTS])
def test_odd_blocks_stay_near_what_they_were(kind: str) -> None:
    block, width = np.zeros((6, 256), np.float32), 256
    block[1] = 1.5  # all the same
    block[2] = -3.25
    block[3, 7] = 1.0  # one number alone
    block[4] = 1e-30  # less than float16 has
    block[5] = np.linspace(-1, 1, width)
    values = gguf.dequantize(quantized(block, BY_NAME[kind]), gguf.GGMLQuantizationType[kind])

    assert np.abs(values - block).max() <= 0.14
    np.testing.assert_array_equal(values[0], 0)


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="no whole blocks of 256"):
        quantized(np.zeros((1, 128), np.float32), BY_NAME["Q4_K"])


def test_formats_that_are_only_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Q2_K is not written; known: .*Q4_K"):
        quantized(np.zeros((1, 256), np.float32), BY_NAME["Q2_K"])
