"""Ranks and alphas of single modules: read as PEFT means them, written so that PEFT reads them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import random_tensors
from model_folders import TINY

from edgetune.adapters import CONFIG, load_adapter, save_adapter
from edgetune.errors import ModelError, UsageError
from edgetune.methods.dylora import DyLora
from edgetune.methods.lora import Lora, LowRank
from edgetune.model import shape_of

SHAPE = shape_of(TINY)


def _config(folder: Path, method: LowRank) -> dict[str, Any]:
    save_adapter(folder, method, SHAPE, random_tensors(method, SHAPE), base="base")
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


def test_what_is_saved_is_read_back_module_by_module(tmp_path: Path) -> None:
    method = Lora(rank=2, alpha=3.0, rank_pattern=("q_proj=5",), alpha_pattern=("*.0.*o_proj=7.5",))
    config = _config(tmp_path, method)
    found = load_adapter(tmp_path, SHAPE).method

    assert config["rank_pattern"] == {"q_proj": 5}
    assert config["alpha_pattern"] == {f"{SHAPE.block(0)}self_attn.o_proj": 7.5}
    assert isinstance(found, LowRank)
    assert found.tensors(SHAPE) == method.tensors(SHAPE)
    for target in method.select(SHAPE):
        assert found.scale_of(target) == method.scale_of(target)


def test_alpha_follows_the_rank_unless_it_is_given() -> None:
    method = Lora(rank=2, rank_pattern=("q_proj=5",))

    assert {method.scale_of(target) for target in method.select(SHAPE)} == {2.0}
    assert not method.refusals(SHAPE, context=8, quantization="none")


def test_parameters_are_counted_with_the_rank_of_each_target() -> None:
    method = Lora(rank=2, rank_pattern=("q_proj=5",))
    expected = sum(
        (5 if target.linear.role == "q" else 2) * (target.linear.inputs + target.linear.outputs)
        for target in method.select(SHAPE)
    )

    assert method.parameters(SHAPE) == expected
    queries = [target for target in method.select(SHAPE) if target.linear.role == "q"]
    assert {method.rank_of(target) for target in queries} == {5}


def test_one_scale_for_all_computes_the_same_updates() -> None:
    method = Lora(rank=2, alpha=3.0, rank_pattern=("q_proj=5",), alpha_pattern=("o_proj=9",))
    tensors = random_tensors(method, SHAPE)
    even, scaled = method.evened(SHAPE, tensors)

    assert len({round(even.scale_of(target), 9) for target in even.select(SHAPE)}) == 1
    for target in method.select(SHAPE):
        a, b = (f"{target.module}.lora_{part}.weight" for part in "AB")
        np.testing.assert_allclose(
            even.scale * scaled[b] @ scaled[a],
            method.scale_of(target) * tensors[b] @ tensors[a],
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize("text", ["q_proj", "q_proj=0", "q_proj=1.5", "=3", "q_proj=x"])
def test_an_entry_that_is_no_name_with_a_rank_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--rank-pattern takes NAME=NUMBER"):
        Lora(rank=2, rank_pattern=(text,))


def test_a_name_that_is_no_target_is_refused() -> None:
    with pytest.raises(UsageError, match="names lm_head, and no target"):
        Lora(rank=2, rank_pattern=("lm_head=3",)).tensors(SHAPE)


@pytest.mark.parametrize(
    "method",
    [
        DyLora(rank=4, rank_pattern=("q_proj=2",)),
        Lora(rank=4, lora_initial="pissa", rank_pattern=("q_proj=2",)),
    ],
)
def test_what_cannot_be_trained_is_refused(method: LowRank) -> None:
    (because,) = method.refusals(SHAPE, context=8, quantization="none")
    assert "Leave out" in because


@pytest.mark.parametrize(
    ("key", "ranks"),
    [
        ("q_proj", {5, 2}),
        (r".*\.0\.self_attn\.q_proj", {5, 2}),
        ("^model.layers.0.self_attn.q_proj", {2}),  # as PEFT: what stands before ^ is empty or not
        (r"model\.layers\.\d+\..*_proj", {5}),
        ("(q|k)_proj", {5, 2}),
    ],
)
def test_keys_are_read_as_peft_reads_them(tmp_path: Path, key: str, ranks: set[int]) -> None:
    from peft.utils.other import get_pattern_key

    config = _config(tmp_path, Lora(rank=2)) | {"rank_pattern": {key: 5}}
    modules = [target.module for target in Lora(rank=2).select(SHAPE)]
    theirs = {
        module: config["rank_pattern"].get(get_pattern_key([key], module), 2) for module in modules
    }
    names = [f"{module}=5" for module in modules if theirs[module] == 5]
    method = Lora(rank=2, alpha=4.0, rank_pattern=tuple(names))
    save_adapter(tmp_path, method, SHAPE, random_tensors(method, SHAPE), base="base")
    (tmp_path / CONFIG).write_text(json.dumps(config))
    found = load_adapter(tmp_path, SHAPE).method

    assert isinstance(found, LowRank)
    assert {t.module: found.rank_of(t) for t in found.select(SHAPE)} == theirs


@pytest.mark.parametrize(
    "key", ["(a+)+", "(a*)*b", "(?=a)", r"(a)\1", "a" * 300, ".*.*.*.*", "[", ""]
)
def test_keys_that_could_run_for_hours_are_refused_by_name(tmp_path: Path, key: str) -> None:
    config = _config(tmp_path, Lora(rank=2)) | {"alpha_pattern": {key: 5}}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    begun = time.monotonic()

    with pytest.raises(ModelError, match="alpha_pattern has the key"):
        load_adapter(tmp_path, SHAPE)
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, None, float("inf")])
def test_values_that_are_no_ranks_are_refused(tmp_path: Path, value: object) -> None:
    config = _config(tmp_path, Lora(rank=2)) | {"rank_pattern": {"q_proj": value}}
    (tmp_path / CONFIG).write_text(json.dumps(config))

    with pytest.raises(ModelError, match="rank_pattern says"):
        load_adapter(tmp_path, SHAPE)
