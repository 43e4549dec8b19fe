"""Gemma 3n in GGUF files: its streams, its layers without keys, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import TINY
from model_folders import write_folder

from edgetune.errors import ModelError, UsageError
from edgetune.exporters.gguf.file import GgufFile
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.gguf.rows import HeldRows, OfTokens
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.updates import Merge
from edgetune.model import LocalModel
from edgetune.tensors.gguf.writer import OutgoingBlocks, Value

LAYERS, OWN = 22, 20
TYPES = ["sliding_attention"] * 19 + ["full_attention"] * 2 + ["sliding_attention"]
CONFIG = {
    "model_type": "gemma3n_text", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "vocab_size": 1024, "vocab_size_per_layer_input": 1000, "max_position_embeddings": 512,
    "num_kv_shared_layers": LAYERS - OWN, "sliding_window": 64, "layer_types": TYPES,
}  # fmt: skip


@pytest.fixture(scope="module")
def facts() -> TokenizerFacts:
    return TokenizerFacts.read(TINY)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return LocalModel.open(write_folder(tmp_path_factory.mktemp("base"), CONFIG))


@pytest.fixture(scope="module")
def written(base: LocalModel, facts: TokenizerFacts) -> GgufFile:
    return model_file(base, Merge(changes={}), "f32", facts)


def opened(file: GgufFile, path: Path) -> LocalModel:
    file.write(path)
    return LocalModel.open(path)


@pytest.mark.parametrize("rows", [5, 8, 11])
def test_a_table_has_a_row_for_each_token(rows: int) -> None:
    values = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    expected = values[[row if row < rows else 0 for row in range(8)]]
    table = OfTokens(HeldRows(values), 8)

    assert table.shape == (8, 2)
    for start in range(8):
        for stop in range(start + 1, 9):
            np.testing.assert_array_equal(table.read(start, stop), expected[start:stop])


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"altup_num_inputs": 3}, "has not 4 streams of which the first is computed"),
        ({"altup_active_idx": 1}, "has not 4 streams of which the first is computed"),
        ({"laurel_rank": 32}, r"rank beside attention \(LAuReL\) is 32, there it is 64"),
        ({"hidden_size_per_layer_input": 128}, "reads 128 numbers of its own, there 256"),
        ({"intermediate_size": [96] * 21 + [64]}, "MLPs differ in width"),
        ({"final_logit_softcapping": 20.0}, r"capped at 20\.0, there at 30\.0"),
        ({"activation_sparsity_pattern": [0.95] * 9 + [0.0] * 13}, "gate of layer 9 lets another"),
        (
            {"activation_sparsity_pattern": [0.95] * 11 + [0.0] * 11},
            "gate of layer 10 lets another",
        ),
        ({"activation_sparsity_pattern": [0.9] * 10 + [0.0] * 12}, "gate of layer 0 lets another"),
        (
            {"num_kv_shared_layers": 1},
            "layers from 21 on read the keys of others, there from 20 on",
        ),
        (
            {"layer_types": ["full_attention"] + ["sliding_attention"] * 19 + TYPES[-2:]},
            "layer 20 reads the keys of layer 0",
        ),
        ({"attention_bias": True}, r"self_attn\.q_proj, .* have biases"),
        ({"hidden_activation": "silu"}, "activation is silu"),
    ],
)
def test_what_llama_cpp_has_otherwise_is_refused(
    tmp_path: Path, facts: TokenizerFacts, changes: dict[str, Any], because: str
) -> None:
    model = LocalModel.open(write_folder(tmp_path / "base", CONFIG | changes))

    with pytest.raises(UsageError, match=because):
        model_file(model, Merge(changes={}), "f16", facts)


def test_narrow_gates_are_told(base: LocalModel, written: GgufFile) -> None:
    (note,) = written.notes
    assert "counts the deviation of 96 numbers over 95" in note
    assert "0.009 deviations higher" in note


def test_what_streams_begin_and_end_with_lies_together(base: LocalModel, written: GgufFile) -> None:
    found = {tensor.name: tensor for tensor in written.tensors}
    for name, module in (
        ("altup_proj.weight", "altup_projections"),
        ("altup_unembd_proj.weight", "altup_unembed_projections"),
    ):
        tensor = found[name]
        assert tensor.shape == (3, 64, 64)
        values = np.concatenate(list(tensor.chunks())).view(np.float32).reshape(3, 64, 64)
        expected = [base.read(f"model.{module}.{stream}.weight") for stream in range(3)]
        np.testing.assert_array_equal(values, expected)


def test_formats_of_what_is_beside_the_stream(base: LocalModel, facts: TokenizerFacts) -> None:
    tensors = model_file(base, Merge(changes={}), "q8_0", facts).tensors
    types = {x.name: x.type.name for x in tensors}

    assert types["blk.0.attn_q.weight"] == types["per_layer_token_embd.weight"] == "Q8_0"
    for name in ("altup_proj", "altup_unembd_proj", "per_layer_model_proj", "blk.0.laurel_l"):
        assert types[f"{name}.weight"] == "F16"
    for name in ("altup_router", "altup_predict_coef", "altup_correct_coef", "altup_router_norm"):
        assert types[f"blk.0.{name}.weight"] == "F32"


def _unread(tensors: tuple[OutgoingBlocks, ...]) -> list[str]:
    parts = (".attn_k.", ".attn_v.", ".attn_k_norm.")
    return [
        x.name
        for x in tensors
        if any(part in x.name for part in parts) and int(x.name.split(".")[1]) >= OWN
    ]


def test_layers_that_read_the_keys_of_others_have_some_that_nothing_reads(
    tmp_path: Path, base: LocalModel, written: GgufFile
) -> None:
    """As llama.cpp wants them; in files that its script makes they are the checkpoint's."""
    names = _unread(written.tensors)
    assert len(names) == 3 * (LAYERS - OWN)
    one = opened(written, tmp_path / "zeros.gguf")
    drawn = [
        replace(x, chunks=lambda x=x: iter([np.ones(x.nbytes, np.uint8).reshape(1, -1)]))
        if x.name in names
        else x
        for x in written.tensors
    ]
    kept = [x for x in written.tensors if x.name not in names]
    for number, tensors in enumerate((drawn, kept)):
        other = opened(replace(written, tensors=tuple(tensors)), tmp_path / f"{number}.gguf")
        assert other.shape == one.shape
        assert other.tensors.keys() == one.tensors.keys() == base.tensors.keys()


def _said(file: GgufFile, changes: dict[str, Value | None]) -> GgufFile:
    changed = file.metadata | {f"gemma3n.{key}": value for key, value in changes.items()}
    return replace(file, metadata={key: x for key, x in changed.items() if x is not None})


def test_what_a_file_does_not_say_is_as_llama_cpp_has_it(
    tmp_path: Path, base: LocalModel, written: GgufFile
) -> None:
    unsaid = ("activation_sparsity_scale", "altup.active_idx", "altup.num_inputs",
              "attention.shared_kv_layers", "embedding_length_per_layer_input",
              "final_logit_softcapping", "rope.freq_base_swa")  # fmt: skip
    plain = opened(written, tmp_path / "plain.gguf")

    found = opened(_said(written, dict.fromkeys(unsaid)), tmp_path / "m.gguf")

    assert found.shape == plain.shape
    assert [x.cutoff is not None for x in found.shape.blocks] == [True] * 10 + [False] * 12


def test_a_file_of_ollama_s_own_converter_is_read(
    tmp_path: Path, base: LocalModel, written: GgufFile
) -> None:
    theirs = {
        "attention.key_length": None, "attention.value_length": None, "rope.freq_base_swa": None,
        "final_logit_softcapping": None, "vocab_size": None, "rope.dimension_count": None,
        "head_dim": Value("uint32", 32), "rope.freq_base_local": Value("float32", 10_000.0),
        "altup.correct_scale": Value("bool", True), "altup.lr_multiplier": Value("float32", 1.0),
    }  # fmt: skip
    plain = opened(written, tmp_path / "plain.gguf")

    found = opened(_said(written, theirs), tmp_path / "m.gguf")

    assert found.shape == plain.shape
    for name in ("model.altup_projections.1.weight", "model.layers.3.laurel.linear_left.weight"):
        np.testing.assert_array_equal(found.read(name), base.read(name))


def test_a_file_without_a_stream_is_refused(tmp_path: Path, written: GgufFile) -> None:
    def shorter(tensor: OutgoingBlocks) -> OutgoingBlocks:
        (rows,) = tensor.chunks()
        return replace(tensor, shape=(2, 64, 64), chunks=lambda: iter([rows[: 2 * 64]]))

    tensors = [shorter(x) if x.name == "altup_proj.weight" else x for x in written.tensors]
    with pytest.raises(ModelError, match=r"altup_proj\.weight: is \(2, 64, 64\)"):
        opened(replace(written, tensors=tuple(tensors)), tmp_path / "m.gguf")


def test_published_models_are_those_that_llama_cpp_has() -> None:
    from edgetune.exporters.gguf.compared import architecture_of
    from edgetune.model import resolve

    for name in ("gemma-3n-e2b", "gemma-3n-e4b-it"):
        assert architecture_of(resolve(name).shape).name == "gemma3n"
