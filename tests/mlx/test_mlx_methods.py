"""Every method computes on MLX what it computes on torch, on packed rows and on windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import continued
from letters import with_letters
from mlx_sessions import batch_of, open_session, take_steps
from models import make_model

from edgetune.backend import GenerateOptions, Session
from edgetune.methods import METHODS

OWN: dict[str, dict[str, Any]] = {
    "prompt": {"prompt_length": 3}, "prefix": {"prefix_length": 3},
    "llama-adapter": {"adaption_length": 3}, "mam": {"prefix_length": 3},
    "prefix-network": {"prefix_length": 3, "reparameterize": True},
    "lora-pissa": {"lora_initial": "pissa"}, "lora-plus": {"lora_plus": 4.0},
    "adapter-parallel": {"adapter_kind": "parallel"},
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {kind: {} for kind in METHODS} | OWN
FAMILIES = ("llama", "gemma2", "gpt2")
BATCH = batch_of(((7, 12, 13), (20, 5), (30,)))


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_agree_with_torch(name: str, tmp_path: Path) -> None:
    found = {}
    folder = with_letters(make_model(tmp_path, FAMILIES[len(name) % len(FAMILIES)]))
    for backend in ("torch", "mlx"):
        session = _open(folder, name, backend)
        for _ in range(2):  # after the first, what began as zero is zero no more
            session.step((BATCH,), loss_tokens=BATCH.loss_tokens, learning_rate=1e-2)
        state, loss = session.optimizer_tensors(), session.evaluate((BATCH,)).loss_sum
        found[backend] = loss, {k: x for k, x in state.items() if k.endswith("exp_avg")}
        session.close()

    assert found["mlx"][0] == pytest.approx(found["torch"][0], rel=1e-4)
    assert found["mlx"][1].keys() == found["torch"][1].keys()
    for tensor, expected in found["torch"][1].items():
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(found["mlx"][1][tensor], expected, atol=1e-3 * scale + 1e-9)


@pytest.mark.parametrize("kind", SETTINGS)
def test_fifty_losses_agree_with_torch(kind: str, tmp_path: Path) -> None:
    folder = with_letters(make_model(tmp_path, "llama", num_hidden_layers=2))
    losses = {}
    for backend in ("torch", "mlx"):
        session = _open(folder, kind, backend)
        losses[backend] = take_steps(session, 50, rate=3e-3)
        session.close()

    np.testing.assert_allclose(losses["mlx"], losses["torch"], rtol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_checkpointing_and_streaming_change_nothing(name: str, tmp_path: Path) -> None:
    folder = with_letters(make_model(tmp_path, "llama", num_hidden_layers=2))
    plain = _open(folder, name)
    streamed = _open(folder, name, checkpointing=2, placement="disk")

    for session in (plain, streamed):
        session.step((BATCH,), loss_tokens=BATCH.loss_tokens, learning_rate=1e-2)

    found = streamed.optimizer_tensors()
    for tensor, expected in plain.optimizer_tensors().items():
        np.testing.assert_allclose(found[tensor], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", SETTINGS)
def test_generation_and_resuming(name: str, tmp_path: Path) -> None:
    """A resumed run is the same bit for bit; cached text is what whole rows predict."""
    folder = with_letters(make_model(tmp_path, "llama", num_hidden_layers=2))
    whole, begun = _open(folder, name), _open(folder, name)
    take_steps(whole, 2)
    take_steps(begun, 1)
    resumed = _open(folder, name)
    resumed.restore(begun.adapter_tensors(), begun.optimizer_tensors())
    take_steps(resumed, 1, first=1)

    row = [5, 9, 11, 40]
    text = continued(resumed, row, GenerateOptions(max_tokens=3))

    for tensor, expected in whole.adapter_tensors().items():
        assert np.array_equal(resumed.adapter_tensors()[tensor], expected), tensor
    for token in text:
        assert int(whole.logits(row)[-1].argmax()) == token
        row.append(token)


def _open(folder: Path, name: str, backend: str = "mlx", **changes: Any) -> Session:
    kind = name if name in METHODS else name.partition("-")[0]
    settings: dict[str, Any] = {"method": kind, **SETTINGS[name], **changes}
    if kind in {"lora", "dora", "dylora"}:
        settings["rank"] = 4
    return open_session(folder, backend, training={"max_grad_norm": 1e9}, **settings)
