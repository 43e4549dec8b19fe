"""GGUF files that others write otherwise than we do: the models that they were made from."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf_models import TINY, absorbed
from model_folders import write_folder

from edgetune.errors import ModelError, UsageError
from edgetune.exporters.gguf.compared import architecture_of
from edgetune.exporters.gguf.file import GgufFile
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.updates import Merge
from edgetune.model import LocalModel, shape_of
from edgetune.tensors.gguf import rows as rows_of_files
from edgetune.tensors.gguf.quantize import quantized
from edgetune.tensors.gguf.rows import read_gguf_rows
from edgetune.tensors.gguf.types import BY_NAME
from edgetune.tensors.gguf.writer import OutgoingBlocks, Value
from edgetune.tensors.raw import fill

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 1024, "max_position_embeddings": 512,
}  # fmt: skip
GRANITE4 = SMALL | {
    "model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"], "mamba_n_heads": 4,
    "mamba_n_groups": 2, "mamba_d_state": 16, "shared_intermediate_size": 96,
    "num_local_experts": 5, "attention_multiplier": 0.5,
}  # fmt: skip
ROTATED = {"position_embedding_type": "rope"}
ATTENTION = ROTATED | {"layer_types": ["attention"] * 2}
NEMOTRON_3 = SMALL | {
    "model_type": "nemotron_h", "layers_block_type": ["mamba", "moe", "attention"],
    "num_hidden_layers": 3, "mamba_num_heads": 6, "mamba_head_dim": 16, "n_groups": 2,
    "ssm_state_size": 16, "n_routed_experts": 6, "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 96, "routed_scaling_factor": 2.5,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "granite 3": SMALL | {
        "model_type": "granite", "attention_multiplier": 0.5, "tie_word_embeddings": True},
    "granite 3, experts": SMALL | {"model_type": "granitemoe", "num_local_experts": 4},
    "granite 4": GRANITE4,
    "granite 4, rotated": GRANITE4 | ROTATED,
    "granite 4, attention": GRANITE4 | ATTENTION,
    "deepseek": SMALL | {
        "model_type": "deepseek_v3", "num_key_value_heads": 2, "kv_lora_rank": 32,
        "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 16,
        "moe_intermediate_size": 32, "n_routed_experts": 6, "num_experts_per_tok": 3,
        "n_shared_experts": 2, "num_nextn_predict_layers": 0, "first_k_dense_replace": 1,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": True},
    "lfm2": SMALL | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
    "nemotron 3": NEMOTRON_3,
    "gemma 4": SMALL | {
        "model_type": "gemma4_text", "global_head_dim": 32, "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 1024, "num_kv_shared_layers": 0},
}  # fmt: skip


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> LocalModel:
    return LocalModel.open(write_folder(tmp_path / "base", CONFIGS[request.param]))


def written(base: LocalModel, quantization: Any = "f32") -> GgufFile:
    """Return the file that we write of a model."""
    return model_file(base, Merge(changes={}), quantization, facts())


@cache
def facts() -> TokenizerFacts:
    return TokenizerFacts.read(TINY)


def opened(file: GgufFile, path: Path) -> LocalModel:
    file.write(path)
    return LocalModel.open(path)


def said(file: GgufFile, changes: dict[str, Value | None]) -> GgufFile:
    """Return a file that says something else of its architecture, or leaves it out."""
    prefix = file.metadata["general.architecture"].content
    changed = file.metadata | {f"{prefix}.{key}": value for key, value in changes.items()}
    return replace(file, metadata={key: x for key, x in changed.items() if x is not None})


def retyped(file: GgufFile, part: str, kind: str) -> GgufFile:
    """Return a file of float32 with the tensors that have a part in their names in another type."""

    def changed(tensor: OutgoingBlocks) -> OutgoingBlocks:
        raw = np.concatenate([chunk.reshape(-1) for chunk in tensor.chunks()])
        blocks = quantized(raw.view(np.float32).reshape(-1, tensor.shape[-1]), BY_NAME[kind])
        return replace(tensor, type=BY_NAME[kind], chunks=lambda: iter([blocks]))

    tensors = [changed(tensor) if part in tensor.name else tensor for tensor in file.tensors]
    return replace(file, tensors=tuple(tensors))


ROUNDED = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("base", ["deepseek"], indirect=True)
@pytest.mark.parametrize(
    ("keys", "values"), [("F16", "BF16"), ("BF16", "F16"), ("Q8_0", "F16"), ("BF16", "BF16")]
)
def test_keys_and_values_of_latents_may_have_different_types(
    tmp_path: Path, base: LocalModel, keys: str, values: str
) -> None:
    file = absorbed(written(base), base.shape)
    model = opened(
        retyped(retyped(file, "attn_k_b", keys), "attn_v_b", values), tmp_path / "apart.gguf"
    )
    name = next(name for name in base.tensors if "kv_b_proj" in name)

    found, expected = (x.read(name).astype(np.float32).reshape(2, 48, 32) for x in (model, base))
    for rows, kind in ((slice(32), keys), (slice(32, None), values)):
        if kind in ROUNDED:
            rounded = expected[:, rows].astype(ROUNDED[kind]).astype(np.float32)
            np.testing.assert_array_equal(found[:, rows], rounded)
        else:
            np.testing.assert_allclose(found[:, rows], expected[:, rows], 0, 0.05)


@pytest.mark.parametrize("base", ["deepseek"], indirect=True)
def test_of_latents_the_heads_alone_are_read_that_are_asked_for(
    tmp_path: Path, base: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(absorbed(written(base), base.shape), tmp_path / "apart.gguf")
    tensor = next(x for name, x in model.tensors.items() if "kv_b_proj" in name)
    whole, read = read_gguf_rows(tensor, 0, 96), []

    def counted(values: Any, path: Path, offset: int) -> None:
        read.append(values.nbytes)
        fill(values, path, offset)

    monkeypatch.setattr(rows_of_files, "fill", counted)
    for start, stop, heads in ((0, 1, 1), (48, 96, 1), (47, 49, 2), (10, 90, 2)):
        read.clear()
        np.testing.assert_array_equal(read_gguf_rows(tensor, start, stop), whole[start:stop])
        assert sum(read) == tensor.nbytes * heads // 2


GRANITES = [name for name in CONFIGS if name.startswith("granite")]


@pytest.mark.parametrize("base", GRANITES, indirect=True)
def test_a_granite_file_that_does_not_say_the_scale_has_that_of_its_heads(
    tmp_path: Path, base: LocalModel
) -> None:
    for unsaid in (("attention.scale",), ("attention.scale", "attention.key_length")):
        model = opened(said(written(base), dict.fromkeys(unsaid)), tmp_path / "m.gguf")
        assert {rule.scale for rule in model.shape.attention} == {0.25}


SHARE = {"rope.dimension_count": Value("uint32", 8)}
UNROTATED = {"rope.scaling.finetuned": Value("bool", False)}


@pytest.mark.parametrize(
    ("base", "changes", "because"),
    [
        ("granite 4, rotated", SHARE, "rotates 8 of the 16 channels of a head, .* Bamba does"),
        ("granite 4, attention", SHARE, "rotates 8 of the 16 channels of a head"),
        ("granite 3", UNROTATED, "a granite model does not rotate"),
        ("granite 3, experts", UNROTATED, "a granitemoe model does not rotate"),
    ],
    indirect=["base"],
)
def test_rotations_that_a_granite_does_not_have_are_refused(
    tmp_path: Path, base: LocalModel, changes: dict[str, Value | None], because: str
) -> None:
    with pytest.raises(ModelError, match=because):
        opened(said(written(base), changes), tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("base", "changes"),
    [("granite 4", SHARE), ("granite 4, attention", UNROTATED)],
    indirect=["base"],
)
def test_a_granite_4_may_know_no_positions(
    tmp_path: Path, base: LocalModel, changes: dict[str, Value | None]
) -> None:
    assert not opened(said(written(base), changes), tmp_path / "m.gguf").shape.rotaries


@pytest.mark.parametrize("base", ["lfm2"], indirect=True)
def test_an_lfm2_of_ollama_s_own_converter_that_says_another_size_is_read(
    tmp_path: Path, base: LocalModel
) -> None:
    file = written(base, "q8_0")
    names = {"token_embd_norm.weight": "output_norm.weight"}
    renamed = [replace(x, name=names.get(x.name, x.name)) for x in file.tensors]
    theirs = said(
        replace(file, tensors=tuple(renamed)), {"feed_forward_length": Value("uint32", 96)}
    )
    plain, model = (
        opened(x, tmp_path / f"{name}.gguf") for name, x in (("plain", file), ("ollama", theirs))
    )

    assert model.shape == plain.shape
    for name in plain.tensors:
        np.testing.assert_array_equal(model.read(name), plain.read(name), err_msg=name)


@pytest.mark.parametrize("base", ["gemma 4"], indirect=True)
def test_a_gemma_4_whose_tower_has_its_full_name_is_read(tmp_path: Path, base: LocalModel) -> None:
    file = written(base, "q8_0")
    tower = replace(file.tensors[1], name="model.vision_tower.std_bias")
    seeing = opened(replace(file, tensors=(*file.tensors, tower)), tmp_path / "seeing.gguf")

    assert seeing.shape == replace(opened(file, tmp_path / "plain.gguf").shape, tower=True)


@pytest.mark.parametrize("base", ["nemotron 3"], indirect=True)
def test_nemotron_3_says_how_experts_are_chosen(tmp_path: Path, base: LocalModel) -> None:
    unsaid = ("expert_weights_norm", "expert_weights_scale", "expert_group_count")
    file = said(written(base), dict.fromkeys(unsaid))
    found, expected = (x.shape.blocks[1].experts for x in (opened(file, tmp_path / "1.gguf"), base))
    assert expected is not None
    assert found == replace(expected, normalised=False, factor=1.0)

    narrow = said(written(base), {"moe_latent_size": Value("uint32", 16)})
    with pytest.raises(ModelError, match="moe_latent_size is 16"):
        opened(narrow, tmp_path / "2.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_routed_experts": 6, "n_group": 3, "topk_group": 2}, "experts are chosen in groups"),
        (
            {"layers_block_type": ["mamba", "moe", "attention", "mlp"]},
            "have an MLP, others experts",
        ),
        ({"mlp_bias": True}, r"mixer\.shared_experts\.up_proj, .* have biases"),
    ],
)
def test_what_llama_cpp_lacks_of_nemotron_3_is_refused(changes: dict[str, Any], words: str) -> None:
    shape = shape_of(NEMOTRON_3 | changes)
    with pytest.raises(UsageError, match=words):
        architecture_of(shape)
