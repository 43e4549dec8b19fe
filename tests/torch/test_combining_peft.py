"""What our combinations add to a matrix, and what PEFT's of the same adapters do."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapters import random_adapter
from models import make_model
from transformers import AutoModelForCausalLM

from edgetune.adapters import LoadedAdapter, save_adapter
from edgetune.combining import How, Recipe, combined
from edgetune.methods import build
from edgetune.methods.lora import LowRank
from edgetune.model import LocalModel

# peft 0.21 asks for a name that transformers 5.23 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOLERANCE = 1e-5
WEIGHTS = (0.8, -0.6, 0.3)
CASES: list[tuple[How, dict[str, Any], dict[str, Any]]] = [
    ("linear", {}, {}),
    ("cat", {}, {}),
    ("svd", {}, {}),
    ("svd", {"rank": 2}, {"svd_rank": 2}),
    ("ties", {"density": 0.4}, {"density": 0.4}),
    ("ties", {"density": 1.0}, {"density": 1.0}),
    ("dare_ties", {"density": 1.0}, {"density": 1.0}),
    ("dare_linear", {"density": 1.0}, {"density": 1.0}),
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return LocalModel.open(make_model(tmp_path_factory.mktemp("model"), request.param))


@pytest.fixture(scope="module")
def adapters(model: LocalModel) -> list[LoadedAdapter]:
    settings = ({}, {"targets": ("attention",)}, {"alpha": 3.0, "layers": 1})
    return [
        random_adapter(build("lora", {"rank": 4, **own}), model.shape, seed)
        for seed, own in enumerate(settings)
    ]


@pytest.fixture(scope="module")
def theirs(
    model: LocalModel, adapters: list[LoadedAdapter], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    folder, found = tmp_path_factory.mktemp("adapters"), None
    base = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    for place, one in enumerate(adapters):
        save_adapter(folder / f"{place}", one.method, model.shape, one.tensors, base="base")
        if found is None:
            found = peft.PeftModel.from_pretrained(base, folder / "0", adapter_name="0")
        else:
            found.load_adapter(folder / f"{place}", adapter_name=f"{place}")
    return found


@pytest.mark.filterwarnings("ignore:The density .* no pruning will be performed:UserWarning")
@pytest.mark.parametrize(("how", "own", "peft_own"), CASES)
def test_combinations_are_pefts(
    model: LocalModel, adapters: list[LoadedAdapter], theirs: Any,
    how: How, own: dict[str, Any], peft_own: dict[str, Any],
) -> None:  # fmt: skip
    found = combined(adapters, model.shape, Recipe(how=how, weights=WEIGHTS, **own), "abc")
    name = f"{how}-{own.get('rank')}-{int(100 * own.get('density', 0))}"
    theirs.add_weighted_adapter(
        ["0", "1", "2"], list(WEIGHTS), name, combination_type=how, **peft_own
    )

    method = found.method
    assert isinstance(method, LowRank)
    for target in method.select(model.shape):
        module = theirs.base_model.model.get_submodule(target.module)
        expected = module.get_delta_weight(name).detach().numpy()
        a, b = (found.tensors[f"{target.module}.lora_{part}.weight"] for part in "AB")
        update = method.scale_of(target) * b @ a
        np.testing.assert_allclose(
            update.T if target.linear.transposed else update, expected, rtol=0, atol=TOLERANCE
        )
        assert np.abs(expected).max() > 100 * TOLERANCE
