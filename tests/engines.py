"""Small engines with a random adapter, and micro-batches for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from adapters import random_tensors
from torch import Tensor
from torch.nn import Parameter

from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.methods.adapted import Adapted
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.settings.spec import Quantization
from edgetune_torch.engine import Engine
from edgetune_torch.load import Loader, Placements
from edgetune_torch.opening import build_engine

LORA = Lora(rank=3)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Opened:
    """An engine and the adaptation that it runs with."""

    engine: Engine
    method: Adapted[Tensor]

    def gradients(
        self, *batches: MicroBatch, scale: float = 1.0
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the summed loss of micro-batches and its gradient by tensor."""
        for parameter in self.method.tensors.values():
            parameter.grad = None
        loss = sum(self.engine.gradients(x, self.method, scale=scale).loss for x in batches)
        found = {name: parameter.grad for name, parameter in self.method.tensors.items()}
        return float(loss), {name: grad for name, grad in found.items() if grad is not None}


@contextmanager
def opened(
    model: LocalModel,
    quantization: Quantization = "none",
    *,
    dtype: torch.dtype = torch.float32,
    lora: Lora = LORA,
    blocks: Any = "resident",
    embedding: Any = "resident",
    head: Any = "resident",
    device: torch.device = CPU,
    **options: Any,
) -> Iterator[Opened]:
    """Yield an engine; ``options`` are those of :func:`edgetune_torch.opening.build_engine`."""
    placements = Placements(blocks=blocks, embedding=embedding, head=head)
    weights = Loader(model, device, quantization, placements).load()
    engine = build_engine(model, weights, dtype, **options)
    tensors = random_tensors(lora, model.shape)
    parameters = {n: Parameter(torch.from_numpy(x).to(device)) for n, x in tensors.items()}
    try:
        yield Opened(engine, Adapted(lora, model.shape, parameters))
    finally:
        engine.close()


def micro_batch(*rows: tuple[int, ...], width: int, seed: int = 0) -> MicroBatch:
    """Return random tokens in documents of the given lengths; every third has no loss."""
    draw = np.random.default_rng(seed)
    shape = (len(rows), width)
    tokens = draw.integers(3, 97, shape).astype(np.int32)
    targets = draw.integers(3, 97, shape).astype(np.int32)
    targets[:, ::3] = IGNORED
    for row, lengths in enumerate(rows):
        tokens[row, sum(lengths) :] = 0
        targets[row, sum(lengths) :] = IGNORED
    return MicroBatch(tokens=tokens, targets=targets, documents=rows)


BATCH = micro_batch((9, 6, 2), (17,), width=19)
"""Packed documents, one longer than the windows of the small models, and padding."""
