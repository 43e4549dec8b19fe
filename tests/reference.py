"""The same loss and gradients from transformers' model by torch's own autograd, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.methods.lora import Lora
from edgetune_torch.engine import Engine


class Reference:
    """A transformers model whose projections are ``W + scale B A``."""

    def __init__(self, folder: Path, engine: Engine, method: Lora) -> None:
        """Take the frozen values from an opened engine, quantized ones as they compute."""
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model = self.model.double().eval()
        self.shape, self.method = engine.decoder.shape, method
        self.frozen = {
            target.module: self._values(engine, target.layer, target.linear.role)
            for target in method.select(self.shape)
        }

    def gradients(
        self, batch: MicroBatch, tensors: Mapping[str, Tensor]
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the summed loss, document by document, and its gradient by tensor."""
        trained = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
        weights = self._weights(trained)
        losses = [self._loss(weights, tokens, targets) for tokens, targets in _documents(batch)]
        loss = torch.stack(losses).sum()
        grads = torch.autograd.grad(loss, list(trained.values()))
        return float(loss.detach()), dict(zip(trained, grads, strict=True))

    def _loss(self, weights: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
        out = torch.func.functional_call(self.model, weights, (tokens[None],))
        return torch.nn.functional.cross_entropy(
            out.logits[0], targets.long(), ignore_index=IGNORED, reduction="sum"
        )

    def _weights(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {}
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
