"""Sessions of objectives over answers, and the gradients of their steps as one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.sessions import Bench
from edgetune.backend import Session, StepResult, Tensors
from edgetune.data.batch import MicroBatch
from edgetune.methods.base import Method
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.settings.spec import ADAMW
from edgetune.world import ALONE, World

LORA = Lora(rank=4)
UNCLIPPED = 1e9
STEPS = 10
FIRST_MOMENT = ".exp_avg"


def open_with(
    bench: Bench,
    model: LocalModel,
    objective: str,
    method: Method = LORA,
    world: World = ALONE,
    **settings: float,
) -> Session:
    """Return a session that learns with an objective, its gradients not clipped."""
    spec = bench.plan(method, model, context=96, loss_chunk=16).spec
    own: dict[str, Any] = {"objective": objective, "max_grad_norm": UNCLIPPED, **settings}
    session = bench.backend.open(
        replace(spec, training=replace(spec.training, **own)), model, world
    )
    bench.held.callback(session.close)
    return session


def gradients_of(before: Tensors, after: Tensors) -> dict[str, NDArray[Any]]:
    """Return what a step added to the first moments: the gradients, where nothing is clipped."""
    found = {}
    for name in after:
        if name.endswith(FIRST_MOMENT):
            past = before[name] if name in before else np.zeros_like(after[name])
            grown = after[name].astype(np.float64) - ADAMW.beta1 * past.astype(np.float64)
            found[name.removesuffix(FIRST_MOMENT)] = grown.ravel() / (1 - ADAMW.beta1)
    return found


def step_on(session: Session, *batches: MicroBatch, terms: int | None = None) -> StepResult:
    """Take a step on micro-batches; without ``terms`` they are pairs."""
    count = sum(len(batch.kinds) // 2 for batch in batches) if terms is None else terms
    return session.step(batches, loss_tokens=count, learning_rate=1e-2)


def as_one(tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return tensors as one vector, in the order of their names."""
    return np.concatenate(
        [np.asarray(tensors[name], np.float64).ravel() for name in sorted(tensors)]
    )
