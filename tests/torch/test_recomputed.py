"""A part that is computed again on the way back keeps its inputs alone, and loads no compiler."""

from __future__ import annotations

import subprocess
import sys
import weakref

import pytest
import torch
from torch import Tensor

from edgetune_torch.recomputed import recomputed

STEP = """
import sys, torch
from edgetune.shape import Attention
from edgetune_torch.attention import causal
q, k, v = (torch.randn(1, 2, 300, 16, requires_grad=True) for _ in range(3))
causal(q, k, v, Attention(scale=0.25, softcap=5.0, window=64)).sum().backward()
assert q.grad is not None
assert "torch._dynamo" not in sys.modules
"""


def _parts() -> tuple[list[Tensor], Tensor]:
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 5, generator=draw).requires_grad_() for _ in range(2)]
    return inputs, torch.randn(5, 5, generator=draw).requires_grad_()


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_gradients_have_the_bits_of_what_keeps_everything(wanted: tuple[bool, bool]) -> None:
    inputs, weight = _parts()
    for x, want in zip(inputs, wanted, strict=True):
        x.requires_grad_(want)

    def part(a: Tensor, b: Tensor) -> Tensor:
        return ((a * b).exp() @ weight).softmax(-1) @ weight.T * 3

    found = []
    for way in (part, lambda *x: recomputed(part, *x)):
        weight.grad = None
        out = way(*inputs)
        (out * torch.arange(5)).sum().backward()
        found.append([out, weight.grad, *(x.grad for x in inputs if x.requires_grad)])
        for x in inputs:
            x.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nothing_but_the_inputs_is_kept_and_no_more_is_computed_than_was_kept() -> None:
    (x, y), _ = _parts()
    made: list[weakref.ref[Tensor]] = []
    ended = []

    def part(a: Tensor, b: Tensor) -> Tensor:
        scores = (a * b).exp()
        weights = scores.softmax(-1)
        made.extend((weakref.ref(scores), weakref.ref(weights)))
        out = weights.sin() * 2
        ended.append(True)
        return out

    out = recomputed(part, x, y)
    assert [each() for each in made] == [None, None]
    out.sum().backward()
    assert len(made) == 4
    assert [each() for each in made] == [None] * 4
    assert len(ended) == 1  # what doubles a sine keeps nothing
    with torch.no_grad():
        recomputed(part, x, y)
    assert len(ended) == 2


def test_attention_in_chunks_loads_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
