"""How many kernels a card is given for a block, a loss and an update: counted without a card.

Tensors of the device ``meta`` go where a card's would, and have no content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from oracle import plain
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is for Linux")

from edgetune.choice import Choice
from edgetune.data.batch import full_batch
from edgetune.methods.lora import Lora
from edgetune.model import resolve
from edgetune.settings.spec import Checkpointing
from edgetune.shape import ModelShape
from edgetune_torch import kernels
from edgetune_torch.dry_run import LiveBytes
from edgetune_torch.fake import fake_engine, fake_method, warm_up
from edgetune_torch.gradients import Gradients
from edgetune_torch.loss import loss_and_gradient
from edgetune_torch.optimizer import AdamW

META = torch.device("meta")
NO_KERNEL = ("empty", "new_empty", "detach", "_unsafe_view", "_reshape_alias", "lift_fresh")


@dataclass
class Counted:
    """Kernels by name: torch's operations that compute, and launches of our own."""

    names: list[str] = field(default_factory=list)

    def of(self, part: Callable[[], object]) -> int:
        """Return how many a part of a step is."""
        before = len(self.names)
        part()
        return len(self.names) - before


class Watch(TorchDispatchMode):
    """Notes the operations that give a card something to do."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(NO_KERNEL):
            self.counted.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Return the count of what a card with our kernels would be given from now on."""
    found = Counted()

    def attention(
        q: Any, k: Any, v: Any, *, is_causal: bool, scale: float, enable_gqa: bool
    ) -> Any:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(q, k, v, 0.0, is_causal, scale=scale)[0]

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(kernels, "served", lambda device: device.type == "meta")
    monkeypatch.setattr(kernels, "launch", lambda kernel, *_, **__: found.names.append(str(kernel)))
    return found


@dataclass
class Step:
    """The parts of a step of an 8 B model in NF4 with a LoRA on all projections."""

    shape: ModelShape
    choice: Choice

    def __post_init__(self) -> None:
        self.engine = fake_engine(self.shape, self.choice, META)
        self.method = fake_method(self.shape, self.choice, META)
        self.gradients = Gradients(self.method.trained)
        self.optimizer = AdamW(self.choice.optimizer, self.method.trained, self.method.rates, 0.0)
        batch = full_batch(1, self.choice.context, self.shape.vocabulary)
        self.layout, _, _ = self.engine._layout(batch, self.method)
        for rule in self.shape.attention:
            if rule.rotary is not None:
                self.layout.cos_sin(rule.rotary)

    def x(self) -> torch.Tensor:
        size = (1, self.choice.context, self.shape.hidden_size)
        return torch.empty(size, dtype=torch.bfloat16, device=META)

    def block(self) -> None:
        """A checkpointed block: forward, again, backward."""
        with torch.no_grad():
            self.engine.decoder.block(0, self.x(), self.layout, self.method)
        x = self.x().requires_grad_()
        out = self.engine.decoder.block(0, x, self.layout, self.method)
        torch.autograd.backward(out, torch.empty_like(out))

    def loss(self) -> None:
        """One chunk: its norm, logits, losses, gradients."""
        x = self.x()[0].requires_grad_()
        targets = torch.zeros(len(x), dtype=torch.long, device=META)
        normed = self.engine.decoder.final_norm(x, self.method)
        _, grad = loss_and_gradient(normed.detach(), targets, len(x), self.engine.head, scale=1.0)
        torch.autograd.backward(normed, grad)

    def update(self) -> None:
        """Clip and step."""
        self.gradients.clip(1.0)
        self.optimizer.step(1e-3, 1)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
def test_a_step_is_few_kernels(counted: Counted, optimizer: str) -> None:
    shape = resolve("llama-3.1-8b").shape
    choice = plain(
        method=Lora(rank=16), quantization="nf4", compute_dtype="bfloat16", optimizer=optimizer,
        context=512, loss_chunk=512, checkpointing=Checkpointing(layers=shape.layers),
    )  # fmt: skip
    warm_up("nf4")
    step = Step(shape, choice)
    with LiveBytes(), Watch(counted):
        step.update()  # the state is there from now on
        block, loss, update = (counted.of(part) for part in (step.block, step.loss, step.update))

    assert block <= 220
    assert loss <= 100
    assert update <= 20


def test_without_our_kernels_a_step_is_many(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count sees what the text does: else it would not see what the kernels save."""
    monkeypatch.setattr(kernels, "served", lambda _: False)
    shape = resolve("llama-3.1-8b").shape
    choice = plain(
        method=Lora(rank=16), quantization="nf4", compute_dtype="bfloat16", optimizer="adamw-8bit",
        context=512, loss_chunk=512, checkpointing=Checkpointing(layers=shape.layers),
    )  # fmt: skip
    warm_up("nf4")
    step = Step(shape, choice)
    with LiveBytes(), Watch(counted):
        step.update()
        loss, update = (counted.of(part) for part in (step.loss, step.update))

    assert loss > 500
    assert update > 5000
