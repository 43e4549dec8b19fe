"""An adapter is written as it is, read back as it was, and refused when it would mean something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from adapters import Tensors, random_tensors
from disks import full_disk
from hypothesis import given
from hypothesis import strategies as st
from model_folders import TINY
from safetensors.numpy import load_file, save_file

from edgetune.adapters import CONFIG, WEIGHTS, load_adapter, save_adapter
from edgetune.adapters.modules import adaptable, exact_names
from edgetune.adapters.vera import VeraFormat
from edgetune.errors import ModelError, UsageError
from edgetune.methods.lora import Lora
from edgetune.methods.targets import select
from edgetune.model import shape_of

LLAMA = shape_of(TINY)
GPT2 = shape_of({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 12, "vocab_size": 11})
LORA = Lora(rank=2, alpha=3.0, dropout=0.25, rslora=True)


def _save(folder: Path, **changes: object) -> Tensors:
    """Write an adapter of the tiny model, with changes to its config."""
    tensors = random_tensors(LORA, LLAMA)
    save_adapter(folder, LORA, LLAMA, tensors, base="org/base")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))
    return tensors


def test_a_saved_adapter_is_read_back(tmp_path: Path) -> None:
    tensors = _save(tmp_path)
    found = load_adapter(tmp_path, LLAMA)

    assert found.base == "org/base"
    assert found.method.tensors(LLAMA) == LORA.tensors(LLAMA)
    assert isinstance(found.method, Lora)
    assert (found.method.scale, found.method.dropout) == (LORA.scale, LORA.dropout)
    assert found.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        assert found.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(found.tensors[name], values)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_tensors_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    _save(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    names = sorted(stored)[:2]
    for name in names:
        stored[name].flat[-1] = value
    save_file(stored, tmp_path / WEIGHTS)

    with pytest.raises(ModelError, match="values that are not finite") as caught:
        load_adapter(tmp_path, LLAMA)
    short = [name.removeprefix("base_model.model.") for name in names]
    assert all(f"{name}: has values that are not finite" in str(caught.value) for name in short)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "bool"])
def test_tensors_of_no_floats_are_named(tmp_path: Path, kind: str) -> None:
    _save(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    name = sorted(stored)[-1]
    stored[name] = np.ones(stored[name].shape, kind)
    save_file(stored, tmp_path / WEIGHTS)

    with pytest.raises(ModelError, match=rf"lora_\w+\.weight: is {kind}"):
        load_adapter(tmp_path, LLAMA)


def test_the_folder_has_two_files_and_peft_names(tmp_path: Path) -> None:
    tensors = _save(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    assert set(load_file(tmp_path / WEIGHTS)) == {f"base_model.model.{name}" for name in tensors}


def test_the_config_says_what_peft_needs(tmp_path: Path) -> None:
    save_adapter(tmp_path, Lora(rank=4), LLAMA, random_tensors(Lora(rank=4), LLAMA), base="base")

    assert json.loads((tmp_path / CONFIG).read_text()) == {
        "base_model_name_or_path": "base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": [
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
        ],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }  # fmt: skip


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = random_tensors(LORA, LLAMA)
    backwards = {name: np.asfortranarray(tensors[name]) for name in reversed(tensors)}
    for name, values in (("a", tensors), ("b", backwards)):
        save_adapter(tmp_path / name, LORA, LLAMA, values, base="base")

    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (("all-linear",), ("c_attn", "c_proj", "c_fc")),
        (("mlp",), ("mlp.c_fc", "mlp.c_proj")),
        (("*.h.1.attn.c_proj",), ("transformer.h.1.attn.c_proj",)),
        (("*.h.1?.mlp.c_fc",), ("transformer.h.10.mlp.c_fc", "transformer.h.11.mlp.c_fc")),
    ],
)
def test_names_are_as_short_as_they_can_be_exactly(
    targets: tuple[str, ...], names: tuple[str, ...]
) -> None:
    assert exact_names(GPT2, [target.module for target in select(GPT2, targets)]) == names


@given(st.data())
def test_names_select_the_same_modules_here(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([LLAMA, GPT2]))
    every = list(adaptable(shape))
    chosen = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    modules = [module for module in every if module in chosen]

    assert [target.module for target in select(shape, exact_names(shape, modules))] == modules


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trainable_token_indices", [1]),
        ("bias", "lora_only"),
        ("init_lora_weights", "pissa"),
        ("task_type", "SEQ_CLS"),
        ("layer_replication", [[0, 2]]),
        ("a_field_of_tomorrow", "something"),
    ],
)
def test_a_field_that_asks_for_more_is_refused(tmp_path: Path, name: str, value: object) -> None:
    _save(tmp_path, **{name: value})

    with pytest.raises(ModelError) as refusal:
        load_adapter(tmp_path, LLAMA)
    assert f"{name} is {value!r}: not supported" in str(refusal.value)


def test_parameters_that_a_file_has_no_tensors_of_are_refused(tmp_path: Path) -> None:
    _save(tmp_path, target_parameters=["mlp.experts.down_proj"])

    with pytest.raises(ModelError, match=r"'mlp.experts.down_proj' is not in the file"):
        load_adapter(tmp_path, LLAMA)


def test_modules_whose_tensors_are_missing_are_told(tmp_path: Path) -> None:
    _save(tmp_path, modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match=r"modules_to_save is \['lm_head'\]: 'lm_head' is not in"):
        load_adapter(tmp_path, LLAMA)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r".*\.(q|k)_proj", "layers_to_transform": [0], "layers_pattern": "x"},
        {"rank_pattern": {}, "modules_to_save": None, "use_dora": False, "peft_version": "0.21.0"},
        {"init_lora_weights": True, "loftq_config": {}, "megatron_core": "megatron.core"},
    ],
)
def test_fields_without_effect_are_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    _save(tmp_path, **changes)

    assert load_adapter(tmp_path, LLAMA).method.tensors(LLAMA) == LORA.tensors(LLAMA)


def test_all_problems_of_a_config_are_named_at_once(tmp_path: Path) -> None:
    _save(tmp_path, r="8", lora_bias=True, bias="all")

    with pytest.raises(ModelError) as refusal:
        load_adapter(tmp_path, LLAMA)
    for problem in ("r must be a whole number", "bias is 'all'", "lora_bias is True"):
        assert problem in str(refusal.value)


def test_an_unknown_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    _save(tmp_path, peft_type="LOHA")

    with pytest.raises(ModelError, match=r"peft_type 'LOHA'. Supported: LORA,"):
        load_adapter(tmp_path, LLAMA)


def test_modules_that_cannot_be_adapted_are_named(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{name}": x for name, x in _save(tmp_path).items()}
    head = {f"base_model.model.lm_head.lora_{part}.weight": np.zeros((2, 2)) for part in "AB"}
    save_file(tensors | head, tmp_path / WEIGHTS)

    with pytest.raises(ModelError, match="lm_head: not a projection"):
        load_adapter(tmp_path, LLAMA)


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{name}": x for name, x in _save(tmp_path).items()}
    first, second, *_ = tensors
    save_file(tensors | {second: np.zeros((1, 1), np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=r"lora_B.weight: is \(1, 1\), expected \(8, 2\)"):
        load_adapter(tmp_path, LLAMA)

    del tensors[first]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=r"lora_A.weight: missing, expected \(2, 8\)"):
        load_adapter(tmp_path, LLAMA)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    _save(tmp_path)

    with pytest.raises(ModelError, match=r"none of its modules is .* of this gpt2 model"):
        load_adapter(tmp_path, GPT2)


def test_tensors_of_16_bits_are_read_as_float32(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{name}": x for name, x in _save(tmp_path).items()}
    halved = {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
    save_file(halved, tmp_path / WEIGHTS)

    for name, values in load_adapter(tmp_path, LLAMA).tensors.items():
        expected = halved[f"base_model.model.{name}"].astype(np.float32)
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("missing", "message"), [(CONFIG, "is not an adapter's folder"), (WEIGHTS, f"has no {WEIGHTS}")]
)
def test_missing_files_are_named(tmp_path: Path, missing: str, message: str) -> None:
    _save(tmp_path)
    (tmp_path / missing).unlink()

    with pytest.raises(ModelError, match=message):
        load_adapter(tmp_path, LLAMA)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    _save(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")

    with pytest.raises(ModelError, match="pickle"):
        load_adapter(tmp_path, LLAMA)


def test_tensors_of_another_method_are_not_written(tmp_path: Path) -> None:
    tensors = random_tensors(Lora(rank=3), LLAMA)

    with pytest.raises(ModelError, match="expected"):
        save_adapter(tmp_path / "adapter", LORA, LLAMA, tensors, base="base")
    assert not (tmp_path / "adapter").exists()


def test_a_failed_write_leaves_the_old_adapter(tmp_path: Path) -> None:
    _save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(16), pytest.raises(OSError, match="too large"):
        save_adapter(tmp_path, LORA, LLAMA, random_tensors(LORA, LLAMA, 1), base="base")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_method_without_a_format_is_refused(tmp_path: Path) -> None:
    class Unheard(Lora):
        kind = "unheard"

    with pytest.raises(UsageError, match=r"'unheard'.*Supported: lora,"):
        save_adapter(tmp_path, Unheard(), LLAMA, {}, base="base")


@pytest.mark.parametrize("key", [0.5, float("inf"), 2**60, "7"])
def test_a_key_that_says_no_matrices_is_refused(key: Any) -> None:
    with pytest.raises(ModelError, match="projection_prng_key"):
        VeraFormat().drawn({"projection_prng_key": key}, {"vera_A": (2, 3), "vera_B": (3, 2)})
