"""Adapters of experts are PEFT's: one file, the same logits, the same gradients, the same merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapters import random_adapter
from models import make_model, make_wrapper
from numpy.typing import NDArray
from opened import open_decoder
from torch.nn import Parameter
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from edgetune.adapters import LoadedAdapter, load_adapter
from edgetune.adapters.lora import LoraFormat
from edgetune.data.batch import full_batch
from edgetune.exporters import ExportRequest, export
from edgetune.methods.adapted import Adapted
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

pytestmark = [
    # peft 0.21 asks for a name that transformers 5.23 calls deprecated
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # it looks for them among modules alone, and takes them for parameters
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]

FAMILIES = (
    "qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe", "gpt_oss", "deepseek_v2",
    "deepseek_v3", "glm4_moe_lite", "gemma4_moe", "phimoe", "qwen3_5_moe_text",
    "nemotron_h_moe",
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(3, 97, 24).tolist()
TOLERANCE = 1e-4
EXACT = 1e-5
SETTINGS: dict[str, dict[str, Any]] = {
    "attention-too": {"targets": ("attention", "experts"), "rank_pattern": ("experts=2",)},
    "last-of-two": {"targets": ("experts.down_proj",), "rslora": True, "alpha": 3.0},
    "first-of-two": {"targets": ("*.experts.gate_up_proj",), "layers": 2},
    "first-of-ungated": {"targets": ("experts.up_proj",)},
}
CASES = [(family, "attention-too") for family in FAMILIES] + [
    ("qwen3_moe", "last-of-two"), ("gpt_oss", "first-of-two"), ("granitemoe", "first-of-two"),
    ("nemotron_h_moe", "first-of-ungated"), ("nemotron_h_moe", "last-of-two"),
]  # fmt: skip


def _base(model: LocalModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)


@torch.no_grad()
def _theirs(model: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = model.eval()(torch.tensor([TOKENS])).logits[0].numpy()
    return found


def _ours(model: LocalModel, adapter: LoadedAdapter) -> NDArray[np.float32]:
    method = Adapted(adapter.method, model.shape, _parameters(adapter))
    return open_decoder(model).logits(TOKENS, method).numpy()


def _parameters(adapter: LoadedAdapter) -> dict[str, Parameter]:
    return {name: Parameter(torch.tensor(x)) for name, x in adapter.tensors.items()}


def _assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_peft_computes_and_learns_what_we_do(tmp_path: Path, family: str, settings: str) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    adapter = random_adapter(Lora(rank=4, **SETTINGS[settings]), model.shape)
    folder = tmp_path / "adapter"
    export("peft", ExportRequest(adapter=adapter, model=model, output=folder))
    theirs = peft.PeftModel.from_pretrained(_base(model), folder, is_trainable=True)

    _assert_close(_ours(model, adapter), _theirs(theirs))
    with pytest.raises(AssertionError):
        _assert_close(_theirs(_base(model)), _theirs(theirs))
    again = load_adapter(folder, model.shape)
    assert again.method.tensors(model.shape) == adapter.method.tensors(model.shape)
    for name, values in adapter.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], values)
    _assert_gradients(model, adapter, theirs)


def _assert_gradients(model: LocalModel, adapter: LoadedAdapter, theirs: Any) -> None:
    ours, batch = _parameters(adapter), full_batch(2, 24, model.shape.vocabulary)
    method, scale = Adapted(adapter.method, model.shape, ours), 1 / batch.loss_tokens
    loss = open_decoder(model).gradients(batch, method, scale=scale).loss * scale
    logits = theirs.eval()(torch.tensor(batch.tokens)).logits.flatten(0, 1)
    expected = cross_entropy(logits, torch.tensor(batch.targets).long().flatten())
    expected.backward()  # type: ignore[no-untyped-call]
    grads = {
        name.replace(".default", ""): x.grad
        for name, x in theirs.named_parameters()
        if x.grad is not None
    }
    stored = LoraFormat().stored_names(ours, model.shape)

    assert loss == pytest.approx(expected.item(), abs=EXACT)
    assert set(stored.values()) == grads.keys()
    for name, parameter in ours.items():
        grad = grads[stored[name]]
        assert parameter.grad is not None
        largest = grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=EXACT * max(1.0, largest))
        assert largest > 10 * EXACT


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("qwen3_moe", ("gate_up_proj", "down_proj")),
        ("gpt_oss", ("down_proj",)),
        ("granitemoe", ("experts.gate_up_proj",)),
        ("nemotron_h_moe", ("experts.up_proj", "experts.down_proj")),
    ],
)
def test_we_compute_what_peft_saved(tmp_path: Path, family: str, parts: tuple[str, ...]) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=5, init_lora_weights=False, target_modules=[],
        target_parameters=list(parts), alpha_pattern={r".*\.0\..*": 2},
    )  # fmt: skip
    theirs = peft.get_peft_model(_base(model), config)
    theirs.save_pretrained(str(tmp_path / "adapter"))

    adapter = load_adapter(tmp_path / "adapter", model.shape)
    _assert_close(_ours(model, adapter), _theirs(theirs))
    with pytest.raises(AssertionError):
        _assert_close(_theirs(_base(model)), _theirs(theirs))


def test_peft_computes_what_we_do_inside_a_model_of_images(tmp_path: Path) -> None:
    make_wrapper(tmp_path / "base", "qwen3_5_moe")
    model = LocalModel.open(tmp_path / "base")
    adapter = random_adapter(Lora(rank=3, targets=("experts",)), model.shape)
    export("peft", ExportRequest(adapter=adapter, model=model, output=tmp_path / "adapter"))
    base = AutoModelForImageTextToText.from_pretrained(model.folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")

    _assert_close(_ours(model, adapter), _theirs(theirs))
    again = load_adapter(tmp_path / "adapter", model.shape)
    assert again.tensors.keys() == adapter.tensors.keys()


@pytest.mark.parametrize(
    "family", ["mixtral", "granitemoe", "gpt_oss", "gemma4_moe", "nemotron_h_moe"]
)
def test_the_merged_model_computes_what_was_trained(tmp_path: Path, family: str) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    adapter = random_adapter(Lora(rank=4, targets=("experts", "attention")), model.shape)
    output = tmp_path / "merged"
    export("hf", ExportRequest(adapter=adapter, model=model, output=output, dtype="float32"))

    merged = LocalModel.open(output)
    _assert_close(_theirs(_base(merged)), _ours(model, adapter))
