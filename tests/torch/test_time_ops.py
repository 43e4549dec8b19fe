"""The operations of a step that plans count are those that the engine dispatches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import RECURRENT, SMALL, make_model
from sessions import session_for
from torch.utils._python_dispatch import TorchDispatchMode

from edgetune.data.batch import full_batch
from edgetune.methods import METHODS, build
from edgetune.model import LocalModel
from edgetune.settings.spec import Checkpointing
from edgetune.speed.ops import Operations

NEAR = 0.3
"""Relative error: the counts are a model, and operations are a part of a step's time."""

SETTINGS = {"context": 32, "micro_batch": 2, "loss_chunk": 64, "compute_dtype": "bfloat16"}


class Counter(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    """Models of families that differ in norms, rotation and attention, deep enough to be blocks."""
    folder = tmp_path_factory.mktemp("models")
    return {
        family: LocalModel.open(
            make_model(folder / family, family, dtype=torch.bfloat16, num_hidden_layers=4)
        )
        for family in ("llama", "gemma2", "qwen3", "mixtral")
    } | {
        family: LocalModel.open(make_model(folder / family, family, dtype=torch.bfloat16))
        for family in RECURRENT
    }


CASES = [
    ("llama", method, quantization, layers)
    for method in METHODS
    for quantization, layers in (("none", 0), ("nf4", 4))
    if method != "full" or quantization == "none"
] + [
    ("gemma2", "lora", "int8", 2), ("qwen3", "adapter", "nf4", 0), ("gemma2", "norm", "none", 0),
    ("mixtral", "lora", "nf4", 4), ("mixtral", "lora", "none", 0),
    *((family, "lora", "none", 2) for family in RECURRENT),
]  # fmt: skip


@pytest.mark.parametrize(("family", "method", "quantization", "layers"), CASES)
def test_counted_operations_are_dispatched(
    models: dict[str, LocalModel], family: str, method: str, quantization: str, layers: int
) -> None:
    model = models[family]
    knobs = SETTINGS | {
        "method": build(method, {}),
        "quantization": quantization,
        "checkpointing": Checkpointing(layers=layers),
    }
    batch = full_batch(2, 32, SMALL["vocab_size"])
    with session_for(model, **knobs) as session:
        choice = session.spec.choice
        session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-3)
        with Counter() as counter:
            session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-3)
    counted = Operations(model.shape, choice.method)
    planned = counted.micro_batch(choice) + counted.update(choice)
    assert planned == pytest.approx(counter.count, rel=NEAR)
