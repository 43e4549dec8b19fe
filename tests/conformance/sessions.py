"""Sessions on tiny models, and rows for them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.backends import WAYS, Ways
from conformance.cases import Case
from edgetune.backend import DEFAULT_ADAPTER, Backend, Session
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.device import Device
from edgetune.methods.base import Method
from edgetune.model import LocalModel
from edgetune.planning import Plan, make_plan
from edgetune.settings.spec import values

CONTEXT = 12
ROW = np.random.default_rng(1).integers(3, 97, CONTEXT - 2).tolist()


@dataclass(frozen=True, slots=True)
class Bench:
    """Opens what a test asks for; everything is closed with it."""

    name: str
    backend: Backend
    device: Device
    held: ExitStack

    @property
    def ways(self) -> Ways:
        """How the backend can hold the frozen model."""
        return WAYS[self.name]

    def plan(self, case: Case | Method, model: LocalModel, *, seed: int = 0, **fixed: Any) -> Plan:
        """Return a plan for a method; ``fixed`` are further knobs of the choice."""
        method = case.method if isinstance(case, Case) else case
        chosen = {
            "compute_dtype": "float32", "quantization": "none", "context": CONTEXT,
            "micro_batch": 8, "accumulation": 1, "placement": "resident",
        }  # fmt: skip
        fixed = chosen | fixed | values(method) | {"method": method.kind}
        given = {name: value for name, value in fixed.items() if value is not None}
        training = {"learning_rate": 1e-2, "seed": seed}
        return make_plan(self.device, "tiny", model.shape, fixed=given, training=training)

    def open(self, case: Case | Method, model: LocalModel, **fixed: Any) -> Session:
        """Return an opened session."""
        session = self.backend.open(self.plan(case, model, **fixed).spec, model)
        self.held.callback(session.close)
        return session


def rows(count: int = 4, *, seed: int = 0) -> MicroBatch:
    """Return random rows, one document each, of different lengths."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(3, 97, (count, CONTEXT + 1)).astype(np.int32)
    lengths = [CONTEXT - 2 * (i % 3) for i in range(count)]
    targets = tokens[:, 1:].copy()
    for row, length in enumerate(lengths):
        targets[row, length:] = IGNORED
    return MicroBatch(
        tokens=tokens[:, :-1], targets=targets, documents=tuple((length,) for length in lengths)
    )


def packed(batch: MicroBatch) -> MicroBatch:
    """Return the documents of all rows one after another in one row, with padding behind."""
    lengths = [row[0] for row in batch.documents]
    width = sum(lengths) + 3
    tokens = np.zeros((1, width), np.int32)
    targets = np.full((1, width), IGNORED, np.int32)
    start = 0
    for row, length in enumerate(lengths):
        tokens[0, start : start + length] = batch.tokens[row, :length]
        targets[0, start : start + length] = batch.targets[row, :length]
        start += length
    return MicroBatch(tokens=tokens, targets=targets, documents=(tuple(lengths),))


def lesson() -> MicroBatch:
    """Return eight rows that end in one token three times, which alone is under loss."""
    batch = rows(8)
    tokens, targets = batch.tokens.copy(), np.full_like(batch.targets, IGNORED)
    for row, (length,) in enumerate(batch.documents):
        tokens[row, length - 3 : length] = 20
        targets[row, length - 4 : length - 1] = 20
    return MicroBatch(tokens=tokens, targets=targets, documents=batch.documents)


def step(session: Session, *batches: MicroBatch, rate: float = 1e-2) -> tuple[float, float]:
    """Take a step and return its loss and the norm of its gradient."""
    tokens = sum(batch.loss_tokens for batch in batches)
    result = session.step(batches, loss_tokens=tokens, learning_rate=rate)
    return result.loss, result.grad_norm


def loss_of(session: Session, *batches: MicroBatch, adapter: str | None = DEFAULT_ADAPTER) -> float:
    """Return the mean loss."""
    result = session.evaluate(batches, adapter=adapter)
    return result.loss_sum / result.loss_tokens
