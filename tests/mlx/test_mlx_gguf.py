"""Matrices in the blocks of a GGUF file on MLX: the same bits, the same training, the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf_files import random_blocks
from gguf_models import convert, exported, in_numbers
from mlx_sessions import open_session, take_steps
from models import make_model
from plan_memory import Case, measure

from edgetune.errors import ModelError
from edgetune.model import LocalModel
from edgetune.tensors.gguf.dequantize import dequantize
from edgetune.tensors.gguf.tensor import RowOrder
from edgetune.tensors.gguf.types import BY_NAME, QUANTIZED
from edgetune_mlx.gguf import GgufPacking
from edgetune_mlx.matrices import Matrix

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64,
        "num_key_value_heads": 2, "vocab_size": 300, "num_hidden_layers": 2}  # fmt: skip
MIXED = {"token_embd": "Q8_0", "attn_v": "Q6_K", "attn_q": "F16", "": "Q4_K"}
STREAMS = {
    "num_hidden_layers": 3, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 1024,
    "hidden_size_per_layer_input": 256, "laurel_rank": 64, "final_logit_softcapping": 30.0,
    "activation_sparsity_pattern": [0.95] * 3,
}  # fmt: skip
LEAST, MOST = -0.02, 0.25
"""How far plans may be from what MLX held: a matrix is on its way in codes and in float32, and MLX
prepares more or less of it ahead."""


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_matrix_has_the_numbers_of_its_blocks(kind: str) -> None:
    blocks = random_blocks(kind, 48 * 512 // BY_NAME[kind].block)
    if kind == "MXFP4":  # products of the largest numbers are none
        blocks[:, 0] = 115 + blocks[:, 0] % 16
    dense = dequantize(kind, blocks).reshape(48, 512)
    packing = GgufPacking.of(kind)
    matrix = Matrix(packing, packing.pack(mx.array(blocks.reshape(48, -1))))
    x = np.random.default_rng(0).normal(size=(5, 512)).astype(np.float32)

    assert np.array_equal(np.array(matrix.dense(mx.float32)), dense)
    narrow = np.array(matrix.dense(mx.bfloat16).astype(mx.float32))
    assert np.array_equal(narrow, np.array(mx.array(dense).astype(mx.bfloat16).astype(mx.float32)))
    assert np.array_equal(
        np.array(matrix.rows(mx.array([[3], [7]]), mx.float32))[:, 0], dense[[3, 7]]
    )
    scale = np.abs(dense).max()
    np.testing.assert_allclose(np.array(matrix.times(mx.array(x))), x @ dense.T, atol=1e-4 * scale)
    back = np.array(matrix.back(mx.array(x[:, :48])))
    np.testing.assert_allclose(back, x[:, :48] @ dense, atol=1e-4 * scale)


def test_columns_of_blocks_go_to_their_places() -> None:
    outputs, inputs, order = 5, 768, RowOrder(1, 2, 3, 128)
    blocks = random_blocks("Q4_K", outputs * inputs // 256)
    packing = GgufPacking.of("Q4_K", order)
    matrix = Matrix(packing, packing.pack(mx.array(blocks.reshape(outputs, -1))))

    found = np.array(matrix.dense(mx.float32))

    places = [order.row_in_file(column) for column in range(inputs)]
    expected = dequantize("Q4_K", blocks).reshape(outputs, inputs)[:, places]
    assert np.array_equal(found, expected)


QWEN35 = {
    "layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2,
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}  # fmt: skip
GEMMA4 = {
    "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"]
    + ["full_attention"] * 2, "vocab_size_per_layer_input": 1024,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3_5_text", QWEN35),
        ("gemma4_text", GEMMA4),
        ("lfm2", {"hidden_size": 64}),
        ("apertus", {}),
        ("granitemoehybrid", {"shared_intermediate_size": 64}),
        ("falcon_h1", {}),
        ("nemotron_h", {"time_step_min": 1e-3}),
        ("nemotron_h_moe", {"n_group": 1, "topk_group": 1}),
        ("gpt_oss", {"swiglu_limit": 7.0, "intermediate_size": 64}),
        ("gemma3n_text", STREAMS),
    ],
)
def test_an_exported_model_is_computed_as_its_numbers(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    base = LocalModel.open(make_model(tmp_path / "base", family, vocab_size=1024, **changes))
    file = LocalModel.open(exported(base, tmp_path / "model.gguf", "q8_0"))
    folder = in_numbers(file, tmp_path / "numbers").folder
    row = list(range(3, 30))

    expected = open_session(folder).logits(row)

    found = open_session(file.folder, quantization="gguf").logits(row)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def _gguf(folder: Path, kind: Any, family: str = "llama", **changes: object) -> Path:
    base = make_model(folder / "base", family, **changes)
    return convert(base, folder / "model.gguf", kind)


def test_a_model_in_parts_trains_as_the_whole_one(tmp_path: Path) -> None:
    whole = _gguf(tmp_path, MIXED, **WIDE)
    parts = convert(tmp_path / "base", tmp_path / "split.gguf", MIXED, part=4)

    expected = take_steps(open_session(whole, quantization="gguf"), 2)
    for places in ({}, {"placement": "disk", "checkpointing": 2}):
        assert take_steps(open_session(parts, quantization="gguf", **places), 2) == expected


@pytest.mark.parametrize("kind", ["Q4_1", "mixed"])
def test_training_equals_that_of_the_same_numbers_in_a_folder(kind: str, tmp_path: Path) -> None:
    file = _gguf(tmp_path, MIXED if kind == "mixed" else kind, **WIDE)
    folder = in_numbers(LocalModel.open(file), tmp_path / "dequantized").folder

    expected = take_steps(open_session(folder), 8)

    assert len(set(expected)) == 8
    for places in ({}, {"placement": "disk", "checkpointing": 2}):
        session = open_session(file, quantization="gguf", **places)
        np.testing.assert_allclose(take_steps(session, 8), expected, rtol=0, atol=1e-5)
        session.close()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_plain_numbers_are_those_of_the_folder(family: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", family)
    file = convert(base, tmp_path / "model.gguf", "F32")
    row = list(range(3, 30))

    found, expected = (open_session(place).logits(row) for place in (file, base))

    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_a_scale_that_is_no_number_is_found(tmp_path: Path) -> None:
    file = _gguf(tmp_path, "Q4_K", **WIDE)
    stored = LocalModel.open(file).tensors["model.layers.1.mlp.up_proj.weight"]
    with file.open("r+b") as stream:
        stream.seek(stored.start + 144 * 5)
        stream.write(b"\x00\x7c")

    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight .* are NaN"):
        open_session(file, quantization="gguf")


CASES = [
    ("Q4_1", Case(model="gguf", context=64, fixed={"quantization": "gguf"})),
    ("mixed", Case(model="gguf", context=64, checkpointed=True, fixed={"quantization": "gguf"})),
    ("Q8_0", Case(model="gguf", context=64, checkpointed=True,
                  fixed={"quantization": "gguf", "placement": "disk"})),
    ("Q4_K", Case(model="gguf", context=128,
                  fixed={"quantization": "gguf", "compute_dtype": "bfloat16"})),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "case"), CASES, ids=str)
def test_training_takes_what_is_planned(kind: str, case: Case, tmp_path: Path) -> None:
    wide = WIDE | {"vocab_size": 4096, "num_hidden_layers": 3, "intermediate_size": 1024}
    file = _gguf(tmp_path, MIXED if kind == "mixed" else kind, **wide)

    found = max((measure(case, file) for _ in range(2)), key=lambda each: each.peak)

    assert LEAST <= found.over <= MOST
