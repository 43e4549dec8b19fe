"""Quantized bases compute what their dequantized values say; embedding and head are quantized too."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_sessions import VOCABULARY, open_session, plan_of, take_steps
from models import make_model
from transformers import AutoModelForCausalLM

from edgetune.device import read_device
from edgetune.device.capability import capability_of
from edgetune.errors import UsageError
from edgetune.model import LocalModel
from edgetune.planning.capability import fitting
from edgetune.storage import blocks_bytes, outer_bytes
from edgetune_mlx.matrices import PACKINGS, Matrix, packing_of

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
ROW = np.random.default_rng(2).integers(3, VOCABULARY, 20).tolist()
STORED = {"q8": 1 + 4 / 64, "q4": 0.5 + 4 / 64, "mxfp4": 0.5 + 1 / 32, "nvfp4": 0.5 + 1 / 16}
"""Bytes a weight of a 16-bit checkpoint."""


@pytest.mark.parametrize("quantization", STORED)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_dequantized_model(
    quantization: str, tied: bool, tmp_path: Path
) -> None:
    folder = make_model(tmp_path, "llama", **WIDE, tie_word_embeddings=tied)
    session = open_session(folder, quantization=quantization)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(_dequantized(parameter, quantization))
        expected = model(torch.tensor([ROW])).logits[0].numpy()

    np.testing.assert_allclose(session.logits(ROW), expected, atol=5e-5, rtol=1e-4)
    session.close()


@pytest.mark.parametrize("quantization", STORED)
def test_a_quantized_base_streams_from_disk_unchanged(quantization: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama", **WIDE)
    resident = open_session(folder, quantization=quantization)
    streamed = open_session(folder, quantization=quantization, placement="disk", checkpointing=3)

    assert take_steps(resident, 2) == take_steps(streamed, 2)
    assert np.array_equal(resident.logits(ROW), streamed.logits(ROW))
    written = streamed.engine.decoder.weights.blocks._folder.path  # type: ignore[attr-defined]
    streamed.close()
    assert not Path(written).exists()


@pytest.mark.parametrize("quantization", STORED)
def test_every_format_multiplies_forward_and_back(quantization: str) -> None:
    packing = packing_of(quantization)
    values = mx.random.normal((48, 128), key=mx.random.key(0)).astype(mx.bfloat16)
    matrix = Matrix(packing, packing.pack(values))
    dense = np.array(matrix.dense(mx.float32))
    x = np.random.default_rng(0).normal(size=(5, 128)).astype(np.float32)

    found = np.array(matrix.times(mx.array(x)))
    back = np.array(matrix.back(mx.array(x[:, :48])))
    rows = np.array(matrix.rows(mx.array([3, 7]), mx.float32))

    np.testing.assert_allclose(found, x @ dense.T, atol=1e-4)
    np.testing.assert_allclose(back, x[:, :48] @ dense, atol=1e-4)
    assert np.array_equal(rows, dense[[3, 7]])
    assert np.abs(dense - np.array(values.astype(mx.float32))).max() < 0.6
    stored = sum(part.nbytes for part in matrix.parts.values())
    assert stored == values.size * STORED[quantization]


@pytest.mark.parametrize("quantization", STORED)
def test_the_plan_counts_the_bytes_of_every_format(quantization: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path, "llama", **WIDE, tie_word_embeddings=False))
    session = open_session(model.folder, quantization=quantization)
    weights = session.engine.decoder.weights  # type: ignore[attr-defined]
    matrices = [weights.embedding, weights.head]
    matrices += [matrix for block in weights.blocks for matrix in block.matrices.values()]
    stored = sum(part.nbytes for matrix in matrices for part in matrix.parts.values())
    norms = sum(4 * tensor.size for tensor in model.shape.tensors() if tensor.kind == "norm")

    planned = outer_bytes(model.shape, quantization) + blocks_bytes(model.shape, quantization)

    assert planned == stored + norms
    session.close()


def test_sizes_that_are_not_whole_groups_are_refused_when_planning(tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path, "llama"))  # matrices of 32 and 48 inputs

    for quantization, group in (("q4", 64), ("mxfp4", 32)):
        with pytest.raises(UsageError, match=f"no multiple of {group}"):
            plan_of(model, "mlx", quantization=quantization)
    assert plan_of(model, "mlx", quantization="nvfp4").choice.quantization == "nvfp4"
    assert capability_of(read_device("mlx")).quantizations == ("none", "q8", "q4")
    assert fitting(capability_of(read_device("mlx")), model.shape).quantizations == ("none",)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path, "llama"))

    with pytest.raises(UsageError, match="none, q8, q4, mxfp4, nvfp4"):
        plan_of(model, "mlx", quantization="nf4")
    with pytest.raises(UsageError, match=", ".join(PACKINGS)):
        packing_of("nf4")


@pytest.mark.parametrize("quantization", STORED)
@pytest.mark.parametrize("stored", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_matrices_are_unpacked_to_the_values_of_mlx(
    quantization: str, stored: mx.Dtype, dtype: mx.Dtype
) -> None:
    packing = packing_of(quantization)
    parts = packing.pack(mx.random.normal((96, 128), key=mx.random.key(1)).astype(stored))
    codes, scales, biases = parts["codes"], parts["scales"], parts.get("biases")
    mode = "affine" if biases is not None else quantization

    expected = mx.dequantize(codes, scales, biases, packing.group, packing.bits, mode)

    assert mx.array_equal(packing.dense(parts, dtype), expected.astype(dtype))


def test_unpacking_holds_nothing_but_the_result() -> None:
    packing = packing_of("q4")
    parts = packing.pack(mx.random.normal((512, 1024), key=mx.random.key(1)))
    before = mx.get_active_memory()
    mx.reset_peak_memory()

    dense = packing.dense(parts, mx.float32)
    mx.eval(dense)

    assert mx.get_peak_memory() - before < 1.02 * dense.nbytes


def _dequantized(values: torch.Tensor, quantization: str) -> torch.Tensor:
    packing = PACKINGS[quantization]
    parts = packing.pack(mx.array(values.numpy()))
    return torch.from_numpy(np.array(packing.dense(parts, mx.float32)))
