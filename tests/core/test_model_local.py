"""A folder becomes a model when every tensor is there, and is refused with all reasons if not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from model_folders import TINY, arrays_for, write_folder

from edgetune.errors import ModelError
from edgetune.model import LocalModel, shape_of

TIED = TINY | {"tie_word_embeddings": True}
GEMMA3 = {
    "model_type": "gemma3",
    "text_config": {**TINY, "model_type": "gemma3_text", "head_dim": 4},
}
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 11}
GPT_NEOX = {**TINY, "model_type": "gpt_neox", "rotary_pct": 1.0}


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_found_and_read_back(tmp_path: Path, shards: int) -> None:
    arrays = arrays_for(TINY)
    model = LocalModel.open(write_folder(tmp_path, arrays=arrays, shards=shards))

    assert set(model.tensors) == set(arrays)
    assert model.shape == shape_of(TINY)
    assert model.nbytes == 4 * model.shape.parameters
    for name, array in arrays.items():
        np.testing.assert_array_equal(model.read(name), array)


def test_a_tensor_is_read_as_a_view_that_cannot_be_written(tmp_path: Path) -> None:
    array = LocalModel.open(write_folder(tmp_path)).read("model.norm.weight")

    assert not array.flags.writeable


def test_bfloat16_is_read_as_such_and_decides_the_number_type(tmp_path: Path) -> None:
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays_for(TINY).items()}
    folder = write_folder(tmp_path, TINY | {"dtype": "float32"}, arrays=arrays)

    model = LocalModel.open(folder)

    assert model.shape.dtype == "bfloat16"
    assert model.read("model.norm.weight").dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(model.read("lm_head.weight"), arrays["lm_head.weight"])


def _prefix(text: str) -> Callable[[str], str]:
    return lambda name: text + name


def _nested(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize(
    ("config", "rename"),
    [
        (TINY, lambda name: name.removeprefix("model.")),
        (GPT2, lambda name: name.removeprefix("transformer.")),
        (GPT_NEOX, lambda name: name.removeprefix("gpt_neox.")),
        (GPT_NEOX, lambda name: name.replace("embed_out", "lm_head")),
        (GEMMA3, _prefix("language_model.")),
        (GEMMA3, _nested),
    ],
    ids=[
        "no model.",
        "no transformer.",
        "no gpt_neox.",
        "renamed head",
        "language_model.",
        "nested",
    ],
)
def test_other_spellings_of_names_are_understood(
    tmp_path: Path, config: dict[str, Any], rename: Callable[[str], str]
) -> None:
    model = LocalModel.open(write_folder(tmp_path, config, rename=rename))

    assert set(model.tensors) == {tensor.name for tensor in model.shape.tensors()}
    assert all(tensor.name == rename(name) for name, tensor in model.tensors.items())


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (TINY, "model.layers.0.self_attn.rotary_emb.inv_freq"),
        (GPT2, "transformer.h.0.attn.bias"),
        (GPT_NEOX, "gpt_neox.layers.0.attention.masked_bias"),
        (GEMMA3, "vision_tower.vision_model.embeddings.patch_embedding.weight"),
        (GEMMA3, "multi_modal_projector.mm_soft_emb_norm.weight"),
    ],
)
def test_known_extras_are_left_alone(tmp_path: Path, config: dict[str, Any], name: str) -> None:
    arrays = arrays_for(config) | {name: np.zeros(3, np.float32)}

    assert name not in LocalModel.open(write_folder(tmp_path, config, arrays=arrays)).tensors


def test_the_copy_of_a_tied_head_is_left_alone(tmp_path: Path) -> None:
    arrays = arrays_for(TIED)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    model = LocalModel.open(write_folder(tmp_path, TIED, arrays=arrays))

    assert "lm_head.weight" not in model.tensors


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rounded", ["lm_head.weight", "model.embed_tokens.weight"])
def test_the_copy_of_a_tied_head_may_be_rounded(tmp_path: Path, dtype: Any, rounded: str) -> None:
    arrays = arrays_for(TIED)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    arrays[rounded] = arrays[rounded].astype(dtype)
    model = LocalModel.open(write_folder(tmp_path, TIED, arrays=arrays))

    assert model.shape.tied


def test_a_tied_head_that_is_there_alone_is_the_embedding(tmp_path: Path) -> None:
    arrays = arrays_for(TIED)
    arrays["lm_head.weight"] = arrays.pop("model.embed_tokens.weight")
    model = LocalModel.open(write_folder(tmp_path, TIED, arrays=arrays))

    np.testing.assert_array_equal(model.read("model.embed_tokens.weight"), arrays["lm_head.weight"])


@pytest.mark.parametrize(
    ("name", "shape"), [("total_ops", ()), ("model.layers.0.total_params", (1,)), ("empty", (0, 8))]
)
def test_what_is_no_part_of_a_model_is_left_alone(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    arrays = arrays_for(TINY) | {name: np.zeros(shape)}

    assert name not in LocalModel.open(write_folder(tmp_path, arrays=arrays)).tensors


@pytest.mark.parametrize(
    ("layers", "word"),
    [(1, "1 in it, 2 in the files"), (3, "3 in it, 2 in the files")],
)
def test_another_number_of_layers_is_said(tmp_path: Path, layers: int, word: str) -> None:
    folder = write_folder(tmp_path, TINY)
    (folder / "config.json").write_text(json.dumps(TINY | {"num_hidden_layers": layers}))

    with pytest.raises(ModelError, match=word):
        LocalModel.open(folder)


def test_the_tensors_say_their_number_type_whatever_the_config_says(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, TINY | {"dtype": "float64"})

    assert LocalModel.open(folder).shape.dtype == "float32"


def test_a_head_that_differs_from_its_tie_is_refused(tmp_path: Path) -> None:
    arrays = arrays_for(TIED)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] + 1

    with pytest.raises(ModelError, match="hold another head"):
        LocalModel.open(write_folder(tmp_path, TIED, arrays=arrays))


def test_every_mismatch_is_named_at_once(tmp_path: Path) -> None:
    arrays = arrays_for(TINY)
    del arrays["model.norm.weight"]
    arrays["model.layers.1.mlp.up_proj.weight"] = np.zeros((3, 8), np.float32)
    arrays["model.layers.0.mlp.up_proj.weight"] = np.zeros((12, 8), np.int8)
    arrays["surprise.weight"] = np.zeros(3, np.float32)

    with pytest.raises(ModelError) as caught:
        LocalModel.open(write_folder(tmp_path, arrays=arrays))

    message = str(caught.value)
    assert "surprise.weight: not expected" in message
    assert "model.norm.weight: missing, expected (8,)" in message
    assert "model.layers.1.mlp.up_proj.weight: is (3, 8), expected (12, 8)" in message
    assert "model.layers.0.mlp.up_proj.weight: is int8" in message


def test_a_long_list_of_mismatches_is_counted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, TINY | {"num_hidden_layers": 1})
    (folder / "config.json").write_text(json.dumps(TINY | {"num_hidden_layers": 4}))

    with pytest.raises(ModelError, match=r"and 19 more$") as caught:
        LocalModel.open(folder)

    assert str(caught.value).count(": missing") == 8


def test_an_untied_model_without_its_head_is_refused(tmp_path: Path) -> None:
    arrays = arrays_for(TINY)
    del arrays["lm_head.weight"]

    with pytest.raises(ModelError, match=r"lm_head.weight: missing, expected \(11, 8\)"):
        LocalModel.open(write_folder(tmp_path, arrays=arrays))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()

    with pytest.raises(ModelError, match=r"lacks files of the model: model-00002-of-00003"):
        LocalModel.open(folder)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    file = write_folder(tmp_path, shards=2) / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(ModelError, match=r"model-00002-of-00002.safetensors is damaged"):
        LocalModel.open(tmp_path)


def _point_outside(where: dict[str, str]) -> None:
    where["model.norm.weight"] = "../other.safetensors"


def _point_to_the_wrong_file(where: dict[str, str]) -> None:
    where["model.norm.weight"] = "model-00001-of-00002.safetensors"
    where["lm_head.weight"] = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (_point_outside, "names files outside its folder"),
        (_point_to_the_wrong_file, "does not fit its files: .* is not in model-0000"),
    ],
)
def test_a_wrong_index_is_refused(
    tmp_path: Path, change: Callable[[dict[str, str]], None], because: str
) -> None:
    index = write_folder(tmp_path, shards=2) / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    change(where)
    index.write_text(json.dumps({"weight_map": where}))

    with pytest.raises(ModelError, match=because):
        LocalModel.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    index = write_folder(tmp_path, shards=2) / "model.safetensors.index.json"
    index.write_text(text)

    with pytest.raises(ModelError, match=r"index.json (cannot be read|has no weight_map)"):
        LocalModel.open(tmp_path)


def test_pickles_are_refused_with_what_to_do(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")

    with pytest.raises(ModelError, match=r"only as pickles \(pytorch_model.bin\).*convert"):
        LocalModel.open(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "model.safetensors").unlink()

    with pytest.raises(ModelError, match=r"has no weights: neither model.safetensors nor"):
        LocalModel.open(tmp_path)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")

    with pytest.raises(ModelError, match="holds an adapter, not a model"):
        LocalModel.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    write_folder(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="latin-1")

    with pytest.raises(ModelError, match=r"config.json (cannot be read|is not a JSON object)"):
        LocalModel.open(tmp_path)


def test_the_fingerprint_is_of_the_model_not_of_its_place(tmp_path: Path) -> None:
    first, moved = (LocalModel.open(write_folder(tmp_path / name)) for name in ("a", "b"))
    other = LocalModel.open(write_folder(tmp_path / "c", TINY | {"rope_theta": 5e5}))
    sharded = LocalModel.open(write_folder(tmp_path / "d", shards=2))

    assert first.fingerprint == moved.fingerprint
    file = first.tensors["model.norm.weight"]
    tuned = write_folder(tmp_path / "e") / file.file.name
    with tuned.open("r+b") as stream:
        stream.seek(file.start)
        stream.write(bytes(2))

    models = (first, other, sharded, LocalModel.open(tuned.parent))
    assert len({model.fingerprint for model in models}) == 4
    assert len(first.fingerprint) == 64
