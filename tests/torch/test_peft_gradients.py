"""PEFT's gradients and ours from one adapter file, where part of the method is a constant."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from adapters import random_adapter
from models import make_model
from opened import open_decoder
from torch.nn import Parameter
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from edgetune.adapters import save_adapter
from edgetune.data.batch import MicroBatch, full_batch
from edgetune.methods import build
from edgetune.methods.adapted import Adapted
from edgetune.methods.base import Method
from edgetune.model import LocalModel

# peft 0.21 asks for a name that transformers 5.23 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOLERANCE = 1e-5
FIXED = {"lora-fa": "lora_A", "vera": "nothing"}
"""What is trained in PEFT's method of the same file and not in ours."""


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "method", [build("lora-fa", {"rank": 4}), build("vera", {"vera_rank": 8})], ids=lambda x: x.kind
)
def test_gradients_and_loss_are_pefts(tmp_path: Path, method: Method, family: str) -> None:
    model = LocalModel.open(make_model(tmp_path / "model", family))
    adapter = random_adapter(method, model.shape)
    save_adapter(tmp_path / "file", method, model.shape, adapter.tensors, base="base")
    trained = {tensor.name for tensor in method.tensors(model.shape) if tensor.trained}
    ours = {
        name: Parameter(torch.tensor(x), requires_grad=name in trained)
        for name, x in adapter.tensors.items()
    }
    batch = full_batch(2, 24, model.shape.vocabulary)
    scale = 1 / batch.loss_tokens
    own = Adapted[torch.Tensor](method, model.shape, ours)
    sums = open_decoder(model).gradients(batch, own, scale=scale)
    loss, theirs = _theirs(model, tmp_path / "file", batch, FIXED[method.kind])

    assert sums.loss * scale == pytest.approx(loss, abs=TOLERANCE)
    assert {name for name, x in ours.items() if x.grad is not None} == trained == theirs.keys()
    for name, grad in theirs.items():
        found = ours[name].grad
        assert found is not None
        largest = grad.abs().max().item()
        torch.testing.assert_close(found, grad, rtol=0, atol=TOLERANCE * max(1.0, largest))
        assert largest > 10 * TOLERANCE


def _theirs(
    model: LocalModel, file: Path, batch: MicroBatch, fixed: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return PEFT's loss and its gradients by the names of the adapter's file."""
    base = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, file, is_trainable=True)
    logits = theirs(torch.tensor(batch.tokens)).logits.flatten(0, 1)
    loss = cross_entropy(logits, torch.tensor(batch.targets).long().flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    named = {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None and fixed not in name
    }
    return loss.item(), named
