"""The same loss and gradients from transformers' model by torch's own autograd.

In float64 they are what is right; in bfloat16, as PEFT computes them, they are a peer's: how far
a careful program strays from what is right in that format.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from edgetune.adapters import save_adapter
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.methods.lora import Lora
from edgetune_torch.engine import Engine


class Reference:
    """A transformers model whose projections are ``W + scale B A``."""

    def __init__(self, folder: Path, engine: Engine, method: Lora) -> None:
        """Take the frozen values from an opened engine, quantized ones as they compute."""
        self.folder = folder
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model = self.model.double().eval()
        self.shape, self.method = engine.decoder.shape, method
        targets = {target.module for target in method.select(self.shape)}
        self.frozen, self.others = {}, {}
        for layer, block in enumerate(self.shape.blocks):
            for linear in block.linears:
                module = f"{self.shape.block(layer)}{linear.module}"
                found = self._values(engine, layer, linear.role)
                if module in targets:
                    self.frozen[module] = found
                else:
                    self.others[f"{module}.weight"] = found.T if linear.transposed else found

    def gradients(
        self, batch: MicroBatch, tensors: Mapping[str, Tensor]
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the summed loss, document by document, and its gradient by tensor."""
        trained = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
        weights = self._weights(trained)
        losses = [
            _summed(torch.func.functional_call(self.model, weights, (tokens[None],)), targets)
            for tokens, targets in _documents(batch)
        ]
        loss = torch.stack(losses).sum()
        grads = torch.autograd.grad(loss, list(trained.values()))
        return float(loss.detach()), dict(zip(trained, grads, strict=True))

    def in_bfloat16(self, folder: Path, tensors: Mapping[str, Tensor]) -> Peer:
        """Return PEFT's model of the same frozen values and adapter; ``folder`` is made."""
        arrays = {name: x.detach().numpy() for name, x in tensors.items()}
        save_adapter(folder, self.method, self.shape, arrays, base="base")
        base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.bfloat16)
        model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
        for target in self.method.select(self.shape):
            value = self.frozen[target.module]
            weight = model.get_submodule(f"base_model.model.{target.module}").base_layer.weight
            weight.data.copy_(value.T if target.linear.transposed else value)
        return Peer(model)

    def _weights(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = dict(self.others)
        for target in self.method.select(self.shape):
            a = trained[f"{target.module}.lora_A.weight"]
            b = trained[f"{target.module}.lora_B.weight"]
            value = self.frozen[target.module] + self.method.scale * (b @ a)
            name = f"{target.module}.weight"
            weights[name] = value.T if target.linear.transposed else value
        return weights

    def _values(self, engine: Engine, layer: int, role: str) -> Tensor:
        blocks = engine.decoder.weights.blocks
        for _ in blocks.walk([layer]):
            return blocks[layer].matrices[role].dense(torch.float32).double().clone()
        raise AssertionError


class Peer:
    """PEFT's model in bfloat16, whose low-rank products are in float32."""

    def __init__(self, model: Any) -> None:
        """Take a model whose adapter is trained."""
        self.model = model

    def gradients(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Return the gradient of the summed loss, document by document, by our names."""
        self.model.zero_grad()
        for tokens, targets in _documents(batch):
            _summed(self.model(tokens[None]), targets).backward()
        return {
            name.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }


def _summed(out: Any, targets: Tensor) -> Tensor:
    logits = out.logits[0] if out.logits.dtype == torch.float64 else out.logits[0].float()
    return torch.nn.functional.cross_entropy(
        logits, targets.long(), ignore_index=IGNORED, reduction="sum"
    )


def _documents(batch: MicroBatch) -> list[tuple[Tensor, Tensor]]:
    found = []
    for row, lengths in enumerate(batch.documents):
        start = 0
        for length in lengths:
            span = slice(start, start + length)
            tokens = torch.from_numpy(batch.tokens[row, span]).long()
            found.append((tokens, torch.from_numpy(batch.targets[row, span])))
            start += length
    return found


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ``|found - expected| / |expected|``."""
    return float((found.double() - expected).norm() / expected.norm())


def whole_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the relative error of several tensors seen as one vector."""
    assert found.keys() == expected.keys()
    both = ({name: x.double() for name, x in item.items()} for item in (found, expected))
    one, other = (torch.cat([item[name].flatten() for name in expected]) for item in both)
    return relative_error(one, other)
