"""Planned and opened sessions over small models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from edgetune.choice import Choice
from edgetune.device import read_device
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.planning import Plan, make_plan
from edgetune.settings.spec import Checkpointing
from edgetune_torch.opening import open_session
from edgetune_torch.session import TorchSession

TRAINING = {"learning_rate": 1e-2, "steps": 10}


def plan_for(
    model: LocalModel, *, device: str = "cpu", limit: int | None = None, **knobs: Any
) -> Plan:
    """Return a plan whose choice is given; what is not given is small and plain."""
    choice = Choice(
        **{
            "method": Lora(rank=3),
            "quantization": "none",
            "checkpointing": Checkpointing(layers=1),
            "placement": "resident",
            "optimizer": "adamw",
            "compute_dtype": "float32",
            "context": 32,
            "micro_batch": 2,
            "accumulation": 1,
            "loss_chunk": 16,
            **knobs,
        }
    )
    plan = make_plan(read_device(device), "test", model.shape, fixed={}, training=TRAINING)
    return replace(plan, choice=choice, device=replace(plan.device, limit_bytes=limit))


@contextmanager
def session_for(model: LocalModel, **knobs: Any) -> Iterator[TorchSession]:
    """Yield an opened session; the knobs are those of :func:`plan_for`."""
    session = open_session(plan_for(model, **knobs).spec, model)
    try:
        yield session
    finally:
        session.close()
