"""The chunked loss and its gradient equal cross entropy over all logits, in a fraction of them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgetune.buckets import buckets
from edgetune.data.batch import IGNORED
from edgetune_mlx.loss import Head, Loss, Sums, Wanted, losses_only
from edgetune_mlx.matrices import PACKINGS, Matrix

TOKENS, HIDDEN, VOCABULARY = 37, 64, 203


@pytest.mark.parametrize("packing", ["none", "q8"])
@pytest.mark.parametrize(
    "settings", [{}, {"softcap": 3.0}, {"scale": 0.3}, {"bias": True}], ids=str
)
def test_loss_and_gradient_equal_autograd(packing: str, settings: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(TOKENS, HIDDEN)).astype(np.float32)
    targets = draw.integers(0, VOCABULARY, TOKENS).astype(np.int32)
    targets[::5] = IGNORED
    head = _head(packing, **settings)
    wanted = Wanted.of(targets[None], 8)

    loss = Loss.of(mx.array(x)[wanted.at], wanted, head, chunk=8, scale=0.5)

    expected, expected_grad, right = _reference(x, targets, head)
    sums = Sums.of(loss.losses, wanted.count)
    assert sums.tokens == int((targets != IGNORED).sum())
    assert sums.loss == pytest.approx(expected, rel=1e-5)
    found = np.array(mx.zeros((TOKENS, HIDDEN)).at[wanted.at].add(loss.grad))
    np.testing.assert_allclose(found, expected_grad * 0.5, atol=2e-5)
    evaluated = losses_only(mx.array(x)[wanted.at], wanted, head, chunk=8)
    assert evaluated == Sums(pytest.approx(sums.loss, rel=1e-6), sums.tokens, right)


def test_no_loss_tokens_give_no_loss_and_no_gradient() -> None:
    wanted = Wanted.of(np.full((2, 9), IGNORED, np.int32), 8)
    x = mx.ones((len(wanted.at), HIDDEN))

    loss = Loss.of(x, wanted, _head("none"), chunk=8, scale=1.0)

    assert Sums.of(loss.losses, wanted.count) == Sums(0.0, 0, 0)
    assert not np.array(loss.grad).any()


def test_shapes_are_few_whatever_the_number_of_loss_tokens() -> None:
    lengths = {
        len(Wanted.of(np.where(np.arange(512) < n, 5, IGNORED)[None], 64).at) for n in range(512)
    }

    assert lengths == {64 * whole + rest for whole in range(8) for rest in buckets(64)}


def test_only_one_chunk_of_logits_is_held() -> None:
    vocabulary, tokens, chunk = 20_000, 256, 32
    weight = mx.random.normal((vocabulary, 8), key=mx.random.key(1))
    head = Head(
        weight=Matrix(PACKINGS["none"], {"values": weight}), bias=None, scale=1.0, softcap=None
    )
    wanted = Wanted.of(np.arange(tokens, dtype=np.int32)[None], chunk)
    x = mx.random.normal((tokens, 8), key=mx.random.key(2))
    mx.eval(weight, x)
    mx.reset_peak_memory()
    before = mx.get_active_memory()

    Loss.of(x, wanted, head, chunk=chunk, scale=1.0).evaluate()

    held = mx.get_peak_memory() - before
    assert held < 2.5 * 4 * chunk * vocabulary


def _head(
    packing: str, *, softcap: float | None = None, scale: float = 1.0, bias: bool = False
) -> Head:
    draw = np.random.default_rng(1)
    values = mx.array(draw.normal(size=(VOCABULARY, HIDDEN)).astype(np.float32) * 0.3)
    added = mx.array(draw.normal(size=VOCABULARY).astype(np.float32)) if bias else None
    matrix = Matrix(PACKINGS[packing], PACKINGS[packing].pack(values))
    return Head(weight=matrix, bias=added, scale=scale, softcap=softcap)


def _reference(
    x: NDArray[np.float32], targets: NDArray[np.int32], head: Head
) -> tuple[float, NDArray[np.float32], int]:
    hidden = torch.from_numpy(x).requires_grad_()
    logits = hidden @ torch.from_numpy(np.array(head.weight.dense(mx.float32))).T
    if head.bias is not None:
        logits = logits + torch.from_numpy(np.array(head.bias))
    logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    wanted = torch.from_numpy(targets).long()
    loss = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
    loss.backward()
    assert hidden.grad is not None
    return float(loss.detach()), hidden.grad.numpy(), int((logits.argmax(-1) == wanted).sum())
