"""Studies and inspection of adapters on experts, and on matrices that are stored transposed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapters import random_tensors
from models import make_model
from numpy.typing import NDArray
from rows import Cli

import edgetune
from edgetune.adapters import save_adapter
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.tensors.reader import read_tensor

RANK = 2
Array = NDArray[np.float64]
Tensors = dict[str, NDArray[np.float32]]


def _saved(folder: Path, model: LocalModel, method: Lora, seed: int = 0) -> Tensors:
    """Write a random adapter and return its tensors."""
    tensors = random_tensors(method, model.shape, seed)
    save_adapter(folder, method, model.shape, tensors, base=str(model.folder))
    return tensors


def _deltas(tensors: Tensors, module: str, experts: int) -> list[Array]:
    """Return what is added to each expert's matrix (outputs, inputs), of scale 2."""
    a, b = (tensors[f"{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
    return [2 * b[:, e::experts] @ a[RANK * e : RANK * (e + 1)] for e in range(experts)]


@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoe", "gpt_oss"])
def test_experts_are_moved_together(family: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    method = Lora(rank=RANK, targets=("experts", "attention"))
    tensors = _saved(tmp_path / "adapter", model, method)
    found = edgetune.study("weights", tmp_path / "adapter")
    prefix, rule = model.shape.block(0), model.shape.blocks[0].experts
    assert rule is not None
    assert any(x.target == "self_attn.q_proj" for x in found.matrices)
    for stack in ("gate_up", "down"):
        modules = [module for role, module in rule.projections if rule.in_stack(role)[0] == stack]
        target = f"{rule.stack}.{stack}_proj"
        magnitudes, directions = [], []
        for expert, delta in enumerate(_deltas(tensors, f"{prefix}{target}", rule.number)):
            parts = [
                read_tensor(model.tensors[f"{prefix}{module.format(expert)}.weight"])
                for module in modules
            ]
            before = np.concatenate([x.T if rule.transposed else x for x in parts]).astype(float)
            after = before + delta
            norms = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
            magnitudes.append(np.abs(norms[1] - norms[0]).mean())
            directions.append((1 - (before * after).sum(1) / norms[0] / norms[1]).mean())
        (moved,) = (x for x in found.matrices if (x.layer, x.target) == (0, target))
        assert moved.magnitude == pytest.approx(np.mean(magnitudes), rel=1e-4)
        assert moved.direction == pytest.approx(np.mean(directions), rel=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gpt_oss", "qwen3_moe"])
def test_what_is_read_is_what_a_makes(family: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    method = Lora(rank=RANK, targets=("attention",) if family == "gpt2" else ("experts",))
    one = _saved(tmp_path / "one", model, method, seed=0)
    other = random_tensors(method, model.shape, seed=1)
    shared = {name: x for name, x in one.items() if "lora_A" in name}
    save_adapter(tmp_path / "two", method, model.shape, other | shared, base=str(model.folder))
    found = edgetune.study("directions", tmp_path / "one", tmp_path / "two")
    sizes = {
        x.module: x for block in model.shape.blocks for x in (*block.linears, *block.expert_stacks)
    }
    for module, table in found.inputs.items():
        assert table[-1][-1] == pytest.approx(1.0)
        assert found.outputs[module][-1][-1] < 0.9
        linear = sizes[module]
        assert found.chance[module] == (RANK / linear.inputs, RANK / linear.outputs)


def test_an_update_of_an_expert_says_whose_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "qwen3_moe"))
    method = Lora(rank=RANK, targets=("experts.down_proj", "attention"))
    tensors = _saved(tmp_path / "adapter", model, method)
    cli = Cli(capsys)
    found = json.loads(cli("inspect", tmp_path / "adapter", "--json", "-q").out)["updates"]
    for stack in ("model.layers.0.mlp.experts", "model.layers.2.mlp.experts"):
        own = [
            x for x in found
            if (x["layer"], x["target"]) == (int(stack[13]), "mlp.experts.down_proj")
        ]  # fmt: skip
        assert [x["expert"] for x in own] == list(range(6))
        for seen, delta in zip(own, _deltas(tensors, f"{stack}.down_proj", 6), strict=True):
            values = np.linalg.svd(delta, compute_uv=False)[:RANK]
            np.testing.assert_allclose(seen["values"], values, rtol=1e-5)
    assert all(x["expert"] is None for x in found if x["target"] == "self_attn.q_proj")
    assert "mlp.experts.down_proj" in cli("inspect", tmp_path / "adapter").out
