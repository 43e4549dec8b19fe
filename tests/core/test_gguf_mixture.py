"""Which format each tensor gets, as llama.cpp's mixtures have it."""

from __future__ import annotations

import gguf
import pytest

from edgetune.exporters.gguf.mixture import MIXTURES, Quantization, more_bits, tensor_type
from edgetune.model import shape_of

CONFIG = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "vocab_size": 100,
}


def _types(quantization: Quantization, name: str, size: tuple[int, ...], **changes: object) -> str:
    shape = shape_of(CONFIG | changes)
    output = "token_embd.weight" if shape.tied else "output.weight"
    return tensor_type(name, size, shape, quantization, output=output).name


def test_the_numbers_of_file_types_are_the_published_ones() -> None:
    published = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
        "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
        "q5_k_m": gguf.LlamaFileType.MOSTLY_Q5_K_M,
        "q6_k": gguf.LlamaFileType.MOSTLY_Q6_K,
    }
    assert {name: mixture.file_type for name, mixture in MIXTURES.items()} == published


def test_the_first_the_last_and_every_third_layer_get_more_bits() -> None:
    assert [layer for layer in range(16) if more_bits(layer, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert [layer for layer in range(3) if more_bits(layer, 3)] == [2]


@pytest.mark.parametrize("part", ["attn_v", "ffn_down"])
@pytest.mark.parametrize(("quantization", "main"), [("q4_k_m", "Q4_K"), ("q5_k_m", "Q5_K")])
def test_values_and_last_products_get_more_bits(
    part: str, quantization: Quantization, main: str
) -> None:
    found = [_types(quantization, f"blk.{layer}.{part}.weight", (512, 512)) for layer in range(16)]
    assert found == ["Q6_K" if more_bits(layer, 16) else main for layer in range(16)]


@pytest.mark.parametrize(
    ("quantization", "embedding", "tied", "output"),
    [
        ("f16", "F16", "F16", "F16"),
        ("q8_0", "Q8_0", "Q8_0", "Q8_0"),
        ("q4_0", "Q4_0", "Q6_K", "Q6_K"),
        ("q4_k_m", "Q4_K", "Q6_K", "Q6_K"),
        ("q5_k_m", "Q5_K", "Q6_K", "Q6_K"),
        ("q6_k", "Q6_K", "Q6_K", "Q6_K"),
    ],
)
def test_the_output_gets_six_bits_or_the_embedding_in_its_place(
    quantization: Quantization, embedding: str, tied: str, output: str
) -> None:
    size = (100, 512)
    assert _types(quantization, "token_embd.weight", size) == embedding
    assert _types(quantization, "token_embd.weight", size, tie_word_embeddings=True) == tied
    assert _types(quantization, "output.weight", size) == output


@pytest.mark.parametrize(
    ("quantization", "inputs", "expected"),
    [
        ("q4_k_m", 512, "Q4_K"),
        ("q4_k_m", 576, "Q5_0"),
        ("q5_k_m", 576, "Q5_1"),
        ("q6_k", 576, "Q8_0"),
        ("q4_0", 576, "Q4_0"),
        ("q4_k_m", 570, "F16"),
        ("q8_0", 570, "F16"),
    ],
)
def test_rows_that_are_no_whole_blocks_fall_back(
    quantization: Quantization, inputs: int, expected: str
) -> None:
    assert _types(quantization, "blk.5.attn_q.weight", (64, inputs)) == expected


def test_an_output_that_is_no_whole_blocks_gets_eight_bits() -> None:
    assert _types("q4_k_m", "output.weight", (100, 576)) == "Q8_0"


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "blk.0.attn_q.bias"])
def test_vectors_stay_exact(name: str) -> None:
    assert _types("q4_k_m", name, (512,)) == "F32"
    assert _types("q4_k_m", "position_embd.weight", (64, 512)) == "F32"


def test_fused_projections_get_one_step_more() -> None:
    assert _types("q4_k_m", "blk.5.attn_qkv.weight", (64, 512)) == "Q5_K"
    assert _types("q5_k_m", "blk.5.attn_qkv.weight", (64, 512)) == "Q6_K"
    assert _types("q6_k", "blk.5.attn_qkv.weight", (64, 512)) == "Q6_K"
