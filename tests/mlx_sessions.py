"""Sessions of both backends over one folder, with every knob that decides numbers fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgetune.backend import Session, load_backend
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.device import read_device
from edgetune.model import LocalModel
from edgetune.planning import Plan, make_plan
from edgetune.settings.spec import Checkpointing

DEVICES = {"torch": "cpu", "mlx": "mlx"}
VOCABULARY = 97
_OPENED: list[Session] = []


def plan_of(model: LocalModel, backend: str, **changes: Any) -> Plan:
    """Return a plan in float32, for LoRA unless a method is named.

    ``training`` and ``memory`` may be among ``changes``; ``checkpointing`` is a number of blocks,
    None leaves it to the planner. It is none of them, or all where MLX can do no other.
    """
    training = {"learning_rate": 1e-3, **changes.pop("training", {})}
    memory = changes.pop("memory", None)
    every = model.shape.layers if backend == "mlx" and model.shape.lenders else 0
    layers = changes.pop("checkpointing", every)
    fixed: dict[str, Any] = {
        "method": "lora", "quantization": "none", "placement": "resident",
        "optimizer": "adamw", "compute_dtype": "float32", "context": 32, "micro_batch": 4,
        "accumulation": 1, "loss_chunk": 16,
    }  # fmt: skip
    if layers is not None:
        fixed["checkpointing"] = Checkpointing(layers=layers)
    if "method" not in changes:
        fixed["rank"] = 4
    device = read_device(DEVICES[backend])
    return make_plan(
        device, model.ref, model.shape, fixed=fixed | changes, training=training, memory=memory
    )


def open_session(folder: Path, backend: str = "mlx", **changes: Any) -> Session:
    """Open a model's folder; what the test does not close is closed after it."""
    model = LocalModel.open(folder)
    session = load_backend(backend).open(plan_of(model, backend, **changes).spec, model)
    _OPENED.append(session)
    return session


def close_all() -> None:
    """Close the sessions that are still open: they have threads, files and memory limits."""
    while _OPENED:
        session = _OPENED.pop()
        if hasattr(session, "engine"):
            session.close()


def batch_of(lengths: tuple[tuple[int, ...], ...], *, width: int = 32, seed: int = 0) -> MicroBatch:
    """Return rows of random documents of these lengths, some of their tokens under loss."""
    draw = np.random.default_rng(seed)
    tokens = np.zeros((len(lengths), width), np.int32)
    targets = np.full_like(tokens, IGNORED)
    for row, wanted, documents in zip(tokens, targets, lengths, strict=True):
        start = 0
        for length in documents:
            document = draw.integers(3, VOCABULARY, length + 1)
            row[start : start + length] = document[:-1]
            trained = slice(start + length // 3, start + length)
            wanted[trained] = document[1 + length // 3 :]
            start += length
    return MicroBatch(tokens=tokens, targets=targets, documents=lengths)


def one_document(rows: int, *, length: int = 24, seed: int = 0) -> MicroBatch:
    """Return rows of one document each, padded to 32 positions."""
    return batch_of(((length,),) * rows, seed=seed)


def take_steps(session: Session, count: int, *, rate: float = 1e-2, first: int = 0) -> list[float]:
    """Train on random rows, the same for the same step; return the losses."""
    losses = []
    for step in range(first, first + count):
        batches = (one_document(2, seed=2 * step), one_document(1, length=31, seed=2 * step + 1))
        tokens = sum(batch.loss_tokens for batch in batches)
        result = session.step(batches, loss_tokens=tokens, learning_rate=rate)
        losses.append(result.loss)
    return losses
