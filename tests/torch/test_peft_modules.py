"""Modules trained whole beside LoRA: PEFT's ``modules_to_save`` and ours from the same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapters import random_adapter
from models import make_model
from opened import open_decoder
from torch.nn import Parameter
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from edgetune.adapters import load_adapter, save_adapter
from edgetune.data.batch import MicroBatch, full_batch
from edgetune.errors import ModelError, UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.methods.adapted import Adapted
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

# peft 0.21 asks for a name that transformers 5.23 calls deprecated
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings"),
]

TOLERANCE = 1e-5
WORDS = {
    "llama": ("embeddings", "head", "norms"),
    "gemma2": ("embeddings", "norms"),
    "gpt2": ("embeddings",),
}
"""By family; Gemma's and GPT-2's heads are their embeddings."""
_FULL = full_batch(2, 24, 94)
BATCH = replace(_FULL, tokens=_FULL.tokens + 3)
"""Without the padding token, whose embedding transformers never trains."""


@pytest.fixture(params=WORDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LocalModel:
    return LocalModel.open(make_model(tmp_path / "base", request.param))


def _lora(model: LocalModel) -> Lora:
    return Lora(rank=4, modules_to_save=WORDS[model.shape.family])


def test_gradients_and_loss_are_pefts(model: LocalModel, tmp_path: Path) -> None:
    adapter = random_adapter(_lora(model), model.shape)
    save_adapter(tmp_path / "file", adapter.method, model.shape, adapter.tensors, base="base")
    ours = {name: Parameter(torch.tensor(x)) for name, x in adapter.tensors.items()}
    own = Adapted[torch.Tensor](adapter.method, model.shape, ours)
    scale = 1 / BATCH.loss_tokens
    sums = open_decoder(model).gradients(BATCH, own, scale=scale)
    theirs = peft.PeftModel.from_pretrained(_base(model), tmp_path / "file", is_trainable=True)
    loss, grads = _gradients(theirs, BATCH)

    assert sums.loss * scale == pytest.approx(loss, abs=TOLERANCE)
    if model.shape.tied and not _ties(model):  # PEFT has the one matrix twice
        grads[model.shape.embedding_tensor] += grads.pop("lm_head.weight")
    assert grads.keys() == ours.keys()
    for name, grad in grads.items():
        largest = grad.abs().max().item()
        atol = TOLERANCE * max(1e-2, largest)
        torch.testing.assert_close(ours[name].grad, grad, rtol=0, atol=atol)
        assert largest > 10 * atol


def test_we_compute_what_peft_saved(model: LocalModel, tmp_path: Path) -> None:
    theirs = peft.get_peft_model(_base(model), _config(model, ensure_weight_tying=_ties(model)))
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0, 0.1)
    if model.shape.tied and not _ties(model):
        wrappers = dict(theirs.named_modules())
        wte, head = (
            wrappers[f"base_model.model.{name}.modules_to_save.default"]
            for name in (model.shape.embedding, model.shape.head)
        )
        head.weight.data.copy_(wte.weight.data)
    theirs.save_pretrained(str(tmp_path / "file"))
    found = load_adapter(tmp_path / "file", model.shape)

    assert isinstance(found.method, Lora)
    assert found.method.modules_to_save == WORDS[model.shape.family]
    parameters = {n: Parameter(torch.tensor(x)) for n, x in found.tensors.items()}
    method = Adapted[torch.Tensor](found.method, model.shape, parameters)
    row = BATCH.tokens[0].tolist()
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor([row])).logits[0]
    logits = open_decoder(model).logits(row, method)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", ["gemma2"], indirect=True)
def test_one_matrix_that_peft_trained_as_two_is_refused(model: LocalModel, tmp_path: Path) -> None:
    theirs = peft.get_peft_model(_base(model), _config(model, ensure_weight_tying=False))
    theirs.save_pretrained(str(tmp_path / "file"))
    with pytest.raises(ModelError, match="trained apart"):
        load_adapter(tmp_path / "file", model.shape)


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_what_has_no_place_in_a_file_is_refused(model: LocalModel, tmp_path: Path) -> None:
    adapter = random_adapter(_lora(model), model.shape)
    for to in ("mlx", "gguf"):
        request = ExportRequest(adapter=adapter, model=model, output=tmp_path / to, alone=True)
        with pytest.raises(UsageError, match="embeddings and head and norms"):
            export(to, request)


def test_merged_into_the_base_it_is_the_same(model: LocalModel, tmp_path: Path) -> None:
    adapter = random_adapter(_lora(model), model.shape)
    export("hf", ExportRequest(adapter=adapter, model=model, output=tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    parameters = {n: Parameter(torch.tensor(x)) for n, x in adapter.tensors.items()}
    method = Adapted[torch.Tensor](adapter.method, model.shape, parameters)
    row = BATCH.tokens[0].tolist()
    with torch.no_grad():
        found = merged.eval()(torch.tensor([row])).logits[0].numpy()
    np.testing.assert_allclose(found, open_decoder(model).logits(row, method), rtol=0, atol=1e-4)


def _ties(model: LocalModel) -> bool:
    """Return whether PEFT can keep the head and the embedding together: by the latter's name."""
    return model.shape.tied and model.shape.embedding.endswith("embed_tokens")


def _base(model: LocalModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)


def _config(model: LocalModel, *, ensure_weight_tying: bool) -> peft.LoraConfig:
    names = {"embeddings": model.shape.embedding, "head": model.shape.head}
    words = WORDS[model.shape.family]
    apart = model.shape.tied and not _ties(model)
    modules = [name for word, name in names.items() if word in words or apart]
    if "norms" in words:
        modules += ["layernorm", "model.norm"]
    return peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear",
        fan_in_fan_out=model.shape.family == "gpt2", modules_to_save=modules,
        ensure_weight_tying=ensure_weight_tying,
    )  # fmt: skip


def _gradients(theirs: Any, batch: MicroBatch) -> tuple[float, dict[str, torch.Tensor]]:
    """Return PEFT's loss and its gradients by the names of the adapter's file."""
    logits = theirs(torch.tensor(batch.tokens)).logits.flatten(0, 1)
    loss = cross_entropy(logits, torch.tensor(batch.targets).long().flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    named = {
        name.removeprefix("base_model.model.")
        .replace(".modules_to_save.default", "")
        .replace(".default", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    return loss.item(), named
