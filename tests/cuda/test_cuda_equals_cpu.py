"""On a card every path gives what the CPU gives, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
from answers import continued
from engines import BATCH, Opened, micro_batch, opened
from models import make_model
from reference import relative_error
from sessions import session_for

from edgetune.backend import DeviceOutOfMemoryError, GenerateOptions
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.settings.spec import Checkpointing, Quantization
from edgetune_torch import kernels
from edgetune_torch.opening import open_session

pytestmark = pytest.mark.cuda

FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox")
TOLERANCE = 1e-4
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "vocab_size": 300}
PLACES: dict[str, dict[str, Any]] = {
    "resident": {},
    "blocks on host": {"blocks": "host"},
    "blocks on disk": {"blocks": "disk"},
    "outer on disk": {"embedding": "disk", "head": "disk"},
    "checkpoints on host": {"checkpointed": 2, "offload": "host"},
    "checkpoints on disk": {"checkpointed": 3, "offload": "disk"},
    "blocks and checkpoints on host": {"blocks": "host", "checkpointed": 3, "offload": "host"},
}


@pytest.fixture(autouse=True)
def _float32_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LocalModel:
    return LocalModel.open(make_model(tmp_path / "base", request.param))


@pytest.fixture
def calm(tmp_path: Path) -> LocalModel:
    """Return a model whose gradients do not multiply rounding: its weights are small."""
    return LocalModel.open(make_model(tmp_path / "base", "llama", **WIDE, initializer_range=0.05))


@pytest.fixture
def wide(tmp_path: Path) -> LocalModel:
    return LocalModel.open(make_model(tmp_path / "base", "llama", **WIDE))


def _assert_same(one: Opened, other: Opened) -> None:
    loss, grads = one.gradients(BATCH)
    for _ in range(3):  # slots are full from the second time on
        other_loss, other_grads = other.gradients(BATCH)

        assert other_loss == pytest.approx(loss, rel=TOLERANCE)
        for name, grad in grads.items():
            found = other_grads[name].cpu()
            assert relative_error(found, grad.cpu().double()) < TOLERANCE, name


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("places", PLACES)
def test_gradients_equal_the_cpu(
    model: LocalModel, places: str, quantization: Quantization
) -> None:
    card = torch.device("cuda")
    with (
        opened(model, quantization, chunk=7) as cpu,
        opened(model, quantization, chunk=7, device=card, **PLACES[places]) as cuda,
    ):
        _assert_same(cpu, cuda)


@pytest.mark.parametrize("places", PLACES)
def test_where_things_live_changes_no_bit(model: LocalModel, places: str) -> None:
    card = torch.device("cuda")
    with opened(model, "nf4", chunk=7, device=card) as plain:
        loss, grads = plain.gradients(BATCH)
    with opened(model, "nf4", chunk=7, device=card, **PLACES[places]) as other:
        for _ in range(3):
            other_loss, other_grads = other.gradients(BATCH)

            if "outer" in places and kernels.served(card):  # a head that is there has no tiles
                assert other_loss == pytest.approx(loss, rel=TOLERANCE)
                continue
            assert other_loss == loss
            assert all(torch.equal(grads[name], other_grads[name]) for name in grads)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_bfloat16_is_close(calm: LocalModel, dropout: float) -> None:
    lora, card = Lora(rank=3, dropout=dropout), torch.device("cuda")
    options: dict[str, Any] = {"lora": lora, "checkpointed": 3}
    with opened(calm, device=card, **options) as plain:
        loss, grads = replace(plain, method=plain.method.drawing("0")).gradients(BATCH)
    with opened(calm, device=card, dtype=torch.bfloat16, **options) as narrow:
        close, found = replace(narrow, method=narrow.method.drawing("0")).gradients(BATCH)

    assert close == pytest.approx(loss, rel=0.01)
    assert all(relative_error(found[name], grads[name].double()) < 0.05 for name in grads)


@pytest.mark.parametrize("placement", ["resident", "host", "disk"])
def test_generation_equals_the_cpu(wide: LocalModel, placement: str) -> None:
    options = GenerateOptions(max_tokens=12)
    knobs = {"quantization": "nf4"}
    with session_for(wide, **knobs) as cpu:
        expected = continued(cpu, range(3, 12), options)
    with session_for(wide, device="cuda", placement=placement, **knobs) as cuda:
        assert continued(cuda, range(3, 12), options) == expected


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "paged-adamw-8bit"])
def test_optimizers_equal_the_cpu(wide: LocalModel, optimizer: str) -> None:
    batch, method = micro_batch((9, 6), (17,), width=19), Lora(rank=64)  # more than stays 32-bit
    results = []
    for device, name in (("cpu", optimizer.removeprefix("paged-")), ("cuda", optimizer)):
        with session_for(wide, device=device, optimizer=name, method=method) as session:
            for _ in range(4):
                step = session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-2)
            results.append(step.loss)

    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_offloaded_checkpoints_leave_the_card(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base", "llama", **WIDE, num_hidden_layers=24)
    model, batch = LocalModel.open(folder), micro_batch(*[(128,)] * 16, width=128)
    peaks = []
    for offload in ("none", "host"):
        card = torch.device("cuda")
        with opened(model, device=card, checkpointed=24, offload=offload) as one:
            for _ in range(2):
                torch.cuda.reset_peak_memory_stats(card)
                one.gradients(batch)
            peaks.append(torch.cuda.max_memory_allocated(card))

    assert peaks[1] < peaks[0] - 20 * batch.tokens.size * 128 * 4


def test_memory_is_limited(wide: LocalModel) -> None:
    from sessions import plan_for

    plan = plan_for(wide, device="cuda", limit=800_000_000)
    session = open_session(plan.spec, wide)
    large = micro_batch(*[(128,)] * 2048, width=128)
    small = micro_batch((9, 6), (17,), width=19)
    with pytest.raises(DeviceOutOfMemoryError):
        session.step([large], loss_tokens=large.loss_tokens, learning_rate=1e-2)
    session.step([small], loss_tokens=small.loss_tokens, learning_rate=1e-2)
    session.close()


def test_closing_gives_everything_back(wide: LocalModel) -> None:
    def once() -> int:
        knobs = {"placement": "host", "checkpointing": Checkpointing(layers=2, offload="host")}
        with session_for(wide, device="cuda", quantization="nf4", **knobs) as session:
            batch = micro_batch((9, 6), (17,), width=19)
            session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-2)
        return torch.cuda.memory_allocated()

    assert once() == once()


@pytest.mark.parametrize("rule", forks.RULES)
def test_documents_that_go_on_from_others_equal_the_cpu(rule: str) -> None:
    here, card = forks.inputs(), [x.detach().cuda().requires_grad_() for x in forks.inputs()]
    outputs = [forks.together(*inputs, forks.RULES[rule]) for inputs in (here, card)]
    for one, other in zip(*outputs, strict=True):
        assert relative_error(other.detach().cpu(), one.detach().double()) < TOLERANCE
        one.square().sum().backward(retain_graph=True)
        other.square().sum().backward(retain_graph=True)
    for one, other in zip(here, card, strict=True):
        assert relative_error(other.grad.cpu(), one.grad.double()) < TOLERANCE
