"""Matrices in the blocks of a GGUF file: the same bits, the same training, the planned memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import micro_batch
from gguf_files import random_blocks
from gguf_models import TINY, absorbed, convert, exported, in_numbers
from models import make_model
from oracle import counted, family, plain
from sessions import session_for

from edgetune.choice import Choice
from edgetune.device import read_device
from edgetune.errors import ModelError, UsageError
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.updates import Merge
from edgetune.memory import Platform, estimate
from edgetune.methods import METHODS, build
from edgetune.model import LocalModel, resolve
from edgetune.planning import make_plan
from edgetune.profile import model_names
from edgetune.settings.spec import Checkpointing
from edgetune.shape import FileFormats, ModelShape
from edgetune.tensors.gguf.dequantize import dequantize
from edgetune.tensors.gguf.tensor import RowOrder
from edgetune.tensors.gguf.types import BY_NAME, QUANTIZED
from edgetune_torch.gguf import VALUES, GgufFormat
from edgetune_torch.workspace import Workspace

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64,
        "num_key_value_heads": 2, "vocab_size": 300, "num_hidden_layers": 2}  # fmt: skip
MIXED = {"token_embd": "Q8_0", "attn_v": "Q6_K", "attn_q": "F16", "": "Q4_K"}
"""Types as llama.cpp mixes them, and a matrix that it left alone."""
DISK = {"placement": "disk", "embedding": "disk", "head": "disk"}
STEPS = 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_matrix_has_the_numbers_of_its_blocks(kind: str, dtype: torch.dtype) -> None:
    outputs, inputs = 3, 256
    assert outputs * inputs % VALUES
    blocks = random_blocks(kind, outputs * inputs // BY_NAME[kind].block)
    form, workspace = GgufFormat.of(kind), Workspace(torch.device("cpu"))
    part = form.parts_of(outputs, inputs, torch.float32)["values"]
    rows = torch.from_numpy(blocks).view(part.shape)

    found = form((outputs, inputs), {"values": rows}, workspace).dense(dtype)

    expected = torch.from_numpy(dequantize(kind, blocks)).view(outputs, inputs).to(dtype)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_more_weights_than_are_unpacked_at_a_time(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune_torch.gguf.VALUES", 512)
    test_a_matrix_has_the_numbers_of_its_blocks(kind, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_of_blocks_go_to_their_places(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of 128 columns, of which two are a block: what a file has in another order."""
    monkeypatch.setattr("edgetune_torch.gguf.VALUES", 1024)
    outputs, inputs, order = 5, 768, RowOrder(1, 2, 3, 128)
    blocks = random_blocks("Q4_K", outputs * inputs // 256)
    form, workspace = GgufFormat.of("Q4_K", order), Workspace(torch.device("cpu"))
    rows = torch.from_numpy(blocks).view(outputs, -1)

    found = form((outputs, inputs), {"values": rows}, workspace).dense(dtype)

    places = [order.row_in_file(column) for column in range(inputs)]
    expected = torch.from_numpy(dequantize("Q4_K", blocks)).view(outputs, inputs)[:, places]
    assert torch.equal(found, expected.to(dtype))


def test_gated_delta_nets_train_in_the_blocks_of_a_file(tmp_path: Path) -> None:
    sizes = {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 128,
             "linear_value_head_dim": 128, "num_hidden_layers": 2,
             "layer_types": ["linear_attention", "full_attention"], "hidden_size": 256,
             "vocab_size": 1024}  # fmt: skip
    base = LocalModel.open(make_model(tmp_path / "base", "qwen3_5_text", **sizes))
    model = LocalModel.open(exported(base, tmp_path / "model.gguf", "q4_k_m"))
    folder = in_numbers(model, tmp_path / "numbers")

    assert model.shape.formats is not None
    assert "Q4_K" in model.shape.formats.matrices[0]
    expected = _losses(folder, "none", steps=3)
    for places in ({}, DISK):
        np.testing.assert_allclose(
            _losses(model, "gguf", steps=3, **places), expected, rtol=0, atol=1e-5
        )


def test_streams_train_in_the_blocks_of_a_file(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 3, "num_kv_shared_layers": 0, "hidden_size": 256, "head_dim": 64,
             "intermediate_size": 512, "vocab_size": 1024, "vocab_size_per_layer_input": 1024,
             "hidden_size_per_layer_input": 256, "laurel_rank": 64, "final_logit_softcapping": 30.0,
             "activation_sparsity_pattern": [0.95] * 3, "initializer_range": 0.05}  # fmt: skip
    base = LocalModel.open(make_model(tmp_path / "base", "gemma3n_text", **sizes))
    model = LocalModel.open(exported(base, tmp_path / "model.gguf", "q4_k_m"))
    folder = in_numbers(model, tmp_path / "numbers")

    assert model.shape.formats is not None
    assert {"Q4_K", "F16"} <= {*model.shape.formats.matrices[0]}
    expected = _losses(folder, "none", steps=3)
    for places in ({}, DISK):
        np.testing.assert_allclose(
            _losses(model, "gguf", steps=3, **places), expected, rtol=0, atol=1e-5
        )


HYBRIDS = {
    "granitemoehybrid": {"mamba_n_heads": 8, "shared_intermediate_size": 512, "num_hidden_layers": 2,
                         "num_local_experts": 3, "intermediate_size": 256},
    "gpt_oss": {"swiglu_limit": 7.0, "num_hidden_layers": 2, "intermediate_size": 256},
}  # fmt: skip
"""Models that have in one matrix what a file has in two."""


@pytest.mark.parametrize("family", HYBRIDS)
def test_matrices_of_several_tensors_train_in_their_blocks(family: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "head_dim": 64, "vocab_size": 1024, "initializer_range": 0.05}
    base = LocalModel.open(make_model(tmp_path / "base", family, **sizes | HYBRIDS[family]))
    model = LocalModel.open(exported(base, tmp_path / "model.gguf", "q4_k_m"))
    folder = in_numbers(model, tmp_path / "numbers")

    assert any(tensor.then for tensor in model.tensors.values() if tensor.in_blocks)
    expected = _losses(folder, "none", steps=2)
    for places in ({}, DISK):
        np.testing.assert_allclose(
            _losses(model, "gguf", steps=2, **places), expected, rtol=0, atol=1e-5
        )


def test_what_makes_keys_and_values_of_latents_trains_from_two_tensors(tmp_path: Path) -> None:
    sizes = {"n_group": 1, "topk_group": 1, "vocab_size": 1024, "hidden_size": 64, "kv_lora_rank": 32,
             "qk_nope_head_dim": 32, "v_head_dim": 32, "moe_intermediate_size": 32}  # fmt: skip
    base = LocalModel.open(make_model(tmp_path / "base", "deepseek_v3", **sizes))
    written = model_file(base, Merge(changes={}), "q8_0", TokenizerFacts.read(TINY))
    absorbed(written, base.shape).write(tmp_path / "model.gguf")
    model = LocalModel.open(tmp_path / "model.gguf")
    folder = in_numbers(model, tmp_path / "numbers")

    assert model.shape.formats is not None
    assert {"F32", "Q8_0"} <= set(model.shape.formats.matrices[0])
    expected = _losses(folder, "none", steps=2)
    for places in ({}, DISK):
        np.testing.assert_allclose(
            _losses(model, "gguf", steps=2, **places), expected, rtol=0, atol=1e-5
        )


def _gguf(folder: Path, kind: Any, **changes: object) -> LocalModel:
    base = make_model(folder / "base", "llama", **(WIDE | changes))
    return LocalModel.open(convert(base, folder / "model.gguf", kind))


def test_a_model_in_parts_trains_as_the_whole_one(tmp_path: Path) -> None:
    whole = _gguf(tmp_path, MIXED)
    parts = LocalModel.open(convert(tmp_path / "base", tmp_path / "split.gguf", MIXED, part=4))

    assert len({tensor.file for tensor in parts.tensors.values()}) > 3
    expected = _losses(whole, "gguf", steps=2)
    for places in ({}, DISK):
        assert _losses(parts, "gguf", steps=2, **places) == expected


def _losses(
    model: LocalModel, quantization: str, *, steps: int = STEPS, rate: float = 1e-2, **knobs: Any
) -> list[float]:
    with session_for(model, quantization=quantization, **knobs) as session:
        losses = []
        for step in range(steps):
            batch = micro_batch((9, 6), (17,), width=19, seed=step % 3)
            found = session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=rate)
            losses.append(found.loss)
    return losses


@pytest.mark.parametrize("kind", ["Q4_1", "Q2_K", "MXFP4", "mixed"])
def test_training_equals_that_of_the_same_numbers_in_a_folder(kind: str, tmp_path: Path) -> None:
    model = _gguf(tmp_path, MIXED if kind == "mixed" else kind)
    folder = in_numbers(model, tmp_path / "dequantized")

    expected = _losses(folder, "none")

    assert expected[-1] < expected[0] - 0.5
    for places in ({}, DISK):
        np.testing.assert_allclose(_losses(model, "gguf", **places), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_plain_numbers_may_be_quantized_as_those_of_a_folder(
    kind: str, quantization: str, tmp_path: Path
) -> None:
    model = _gguf(tmp_path, {"norm": "F32", "": kind})
    folder = in_numbers(model, tmp_path / "dequantized")

    assert model.shape.formats is None
    expected = _losses(folder, quantization, steps=3)
    found = _losses(model, quantization, steps=3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_leaves_the_weights_alone_trains_the_same(
    method: str, tmp_path: Path
) -> None:
    model = _gguf(tmp_path, MIXED)
    if method == "full":
        with pytest.raises(UsageError, match="which gguf does not keep"):
            _planned(model, method=method)
        return
    own = {"prefix_initial": "random"} if method in {"prefix", "mam"} else {}  # there are no texts
    folder, same = in_numbers(model, tmp_path / "dequantized"), {"method": build(method, own)}

    expected = _losses(folder, "none", steps=3, rate=1e-3, **same)

    assert len(set(expected)) == 3
    found = _losses(model, "gguf", steps=3, rate=1e-3, **same)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def _planned(model: LocalModel, **fixed: Any) -> Any:
    return make_plan(
        read_device("cpu"), "test", model.shape, fixed=fixed, training={"steps": 1}, memory=None
    )


def test_plans_offer_what_the_file_has_and_nothing_else(tmp_path: Path) -> None:
    model = _gguf(tmp_path, MIXED)

    plan = _planned(model)

    assert plan.choice.quantization == "gguf"
    assert any("weights in Q4_K" in reason for reason in plan.reasons)
    with pytest.raises(UsageError, match=r"--quantization nf4\. Supported: gguf"):
        _planned(model, quantization="nf4")
    with pytest.raises(UsageError, match="--head int8 would round"):
        _planned(model, head="int8")
    folder = in_numbers(model, tmp_path / "dequantized")
    with pytest.raises(UsageError, match="--quantization gguf"):
        _planned(folder, quantization="gguf")


def test_a_scale_that_is_no_number_is_found_when_it_is_read(tmp_path: Path) -> None:
    model = _gguf(tmp_path, "Q4_K")
    stored = model.tensors["model.layers.1.mlp.up_proj.weight"]
    with stored.file.open("r+b") as file:
        file.seek(stored.start + 144 * 5)
        file.write(b"\x00\x7c")

    for places in ({}, DISK):
        with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight .* are NaN"):
            _losses(model, "gguf", **places)


@dataclass(frozen=True)
class GgufCase:
    """A model in blocks, its layers in turn of these types."""

    model: str
    layers: int
    kinds: Sequence[str]
    vocabulary_kind: str
    choice: Choice

    @property
    def shape(self) -> ModelShape:
        """The shape, with fewer tokens."""
        whole = resolve(self.model).shape if self.model in model_names() else family(self.model)
        blocks = (whole.blocks * self.layers)[-self.layers :]
        kinds = [
            tuple(self.kinds[(at + layer) % len(self.kinds)] for at in range(len(block.linears)))
            for layer, block in enumerate(blocks)
        ]
        formats = FileFormats(
            matrices=tuple(kinds), embedding=self.vocabulary_kind, head=self.vocabulary_kind
        )
        return replace(
            whole, blocks=blocks, vocabulary=2500, dtype="float32",
            formats=formats,
        )  # fmt: skip


CASES = [
    GgufCase("smollm2-135m", 2, ("Q4_1",), "Q8_0", plain(quantization="gguf")),
    GgufCase("smollm2-135m", 3, ("Q4_1", "Q5_0"), "Q8_0", plain(
        quantization="gguf", compute_dtype="bfloat16", checkpointing=Checkpointing(layers=3), **DISK)),
    GgufCase("qwen3-0.6b", 2, ("Q4_K", "Q6_K"), "Q6_K", plain(
        quantization="gguf", compute_dtype="bfloat16", checkpointing=Checkpointing(layers=1))),
    GgufCase("llama-3.2-1b", 2, ("Q2_K", "Q3_K"), "Q6_K", plain(
        quantization="gguf", head="disk", context=64)),
    GgufCase("gpt2", 2, ("MXFP4", "F16"), "F16", plain(
        quantization="gguf", placement="disk", embedding="disk", checkpointing=Checkpointing(layers=2))),
    GgufCase("qwen2.5-0.5b", 2, ("Q5_1",), "Q4_0", plain(
        quantization="gguf", compute_dtype="bfloat16", embedding="disk", micro_batch=2)),
    GgufCase("qwen3_5_text", 2, ("Q4_0",), "Q8_0", plain(
        quantization="gguf", compute_dtype="bfloat16", context=64)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}-{'-'.join(case.kinds)}")
def test_the_closed_form_is_never_under_and_hardly_over(case: GgufCase) -> None:
    for multiplies in (True, False) if case.choice.compute_dtype != "float32" else (False,):
        platform = Platform(kind="cpu", multiplies_16bit=multiplies)
        planned = estimate(case.shape, case.choice, platform)
        for item in counted(case, planned, multiplies_16bit=multiplies):
            assert 0 <= item.over <= 0.015, (item.phase, multiplies, item.over)
