"""The same model, data, seed and settings give the same training on both backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import random_tensors
from mlx_sessions import batch_of, open_session, plan_of, take_steps
from models import FAMILIES, make_model

from edgetune.adapters import load_adapter, save_adapter
from edgetune.backend import Session
from edgetune.model import LocalModel

LOSE = {"max_grad_norm": 1e9}
"""No clipping: gradients are compared as they are."""


@pytest.mark.parametrize(
    ("family", "layers", "steps"),
    [("llama", 2, 50), ("gemma4_text", 3, 20), ("gemma3n_text", 4, 10), ("nemotron_h_moe", 4, 20)],
)
def test_losses_agree(family: str, layers: int, steps: int, tmp_path: Path) -> None:
    folder = make_model(tmp_path, family, num_hidden_layers=layers)
    losses = {}
    for backend in ("torch", "mlx"):
        session = open_session(folder, backend, training={"weight_decay": 0.01}, accumulation=2)
        losses[backend] = take_steps(session, steps)
        session.close()

    np.testing.assert_allclose(losses["mlx"], losses["torch"], rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_agree(family: str, tmp_path: Path) -> None:
    """After one step the optimizer's first moment is a tenth of the gradient."""
    folder = make_model(tmp_path, family)
    moments = {}
    for backend in ("torch", "mlx"):
        session = open_session(folder, backend, training=LOSE)
        session.restore(_random(session, folder))
        batch = batch_of(((24,), (10, 15), (32,)))
        session.step((batch,), loss_tokens=batch.loss_tokens, learning_rate=1e-3)
        state = session.optimizer_tensors()
        moments[backend] = {name: x for name, x in state.items() if name.endswith("exp_avg")}
        session.close()

    assert moments["torch"].keys() == moments["mlx"].keys()
    for name, expected in moments["torch"].items():
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(moments["mlx"][name], expected, atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "nemotron_h_moe"])
def test_gradients_of_updates_of_experts_agree(family: str, tmp_path: Path) -> None:
    folder, found, targets = make_model(tmp_path, family, layers=2), {}, ("experts", "attention")
    for backend in ("torch", "mlx"):
        session = open_session(folder, backend, training=LOSE, targets=targets)
        session.restore(_random(session, folder, targets=targets))
        batch = batch_of(((24,), (10, 15), (32,)))
        session.step((batch,), loss_tokens=batch.loss_tokens, learning_rate=1e-3)
        state = session.optimizer_tensors()
        found[backend] = {name: x for name, x in state.items() if name.endswith("exp_avg")}
        session.close()

    assert found["torch"].keys() == found["mlx"].keys()
    for name, expected in found["torch"].items():
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(found["mlx"][name], expected, atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_streaming_changes_nothing_where_layers_read_the_keys_of_others(
    family: str, tmp_path: Path
) -> None:
    folder, batch = make_model(tmp_path, family), batch_of(((24,), (10, 15), (32,)))
    states = []
    for placement in ("resident", "disk"):
        session = open_session(folder, placement=placement)
        session.step((batch,), loss_tokens=batch.loss_tokens, learning_rate=1e-2)
        states.append(session.optimizer_tensors())
        session.close()

    for name, expected in states[0].items():
        np.testing.assert_allclose(states[1][name], expected, rtol=1e-5, atol=1e-8)


def test_an_adapter_moves_from_torch_to_mlx_and_back(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen3")
    model, row = LocalModel.open(folder), list(range(5, 28))
    torch_session, mlx_session = open_session(folder, "torch"), open_session(folder, "mlx")
    take_steps(torch_session, 3)
    _hand_over(torch_session, mlx_session, model, tmp_path / "one")
    there = mlx_session.logits(row)
    take_steps(mlx_session, 3)
    expected = torch_session.logits(row)
    after = mlx_session.logits(row)
    _hand_over(mlx_session, torch_session, model, tmp_path / "two")

    np.testing.assert_allclose(there, expected, atol=1e-4)
    np.testing.assert_allclose(torch_session.logits(row), after, atol=1e-4)
    assert not np.allclose(there, after, atol=1e-2)


def test_a_run_goes_on_with_the_other_backends_optimizer(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama")
    whole = open_session(folder, "torch")
    take_steps(whole, 4)
    begun, other = open_session(folder, "torch"), open_session(folder, "mlx")
    take_steps(begun, 2)

    other.restore(begun.adapter_tensors(), begun.optimizer_tensors())
    take_steps(other, 2, first=2)

    found = other.adapter_tensors()
    for name, expected in whole.adapter_tensors().items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def _random(session: Session, folder: Path, **settings: Any) -> dict[str, np.ndarray]:
    model = LocalModel.open(folder)
    return dict(random_tensors(plan_of(model, "mlx", **settings).choice.method, model.shape))


def _hand_over(source: Session, target: Session, model: LocalModel, folder: Path) -> None:
    method = plan_of(model, "mlx").choice.method
    save_adapter(folder, method, model.shape, source.adapter_tensors(), base="base")
    target.restore(load_adapter(folder, model.shape).tensors)
