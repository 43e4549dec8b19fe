"""A session says which kernels of our own compute, and goes on with those of another one alone."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from edgetune.block_shape import NormKind
from edgetune_torch import cpu_kernels, kernels, own_kernels
from edgetune_torch.flash import FusedOnCpu
from edgetune_torch.kernel_use import (
    ATTENTION,
    LOSS,
    OF_CARDS,
    OF_PROCESSORS,
    POINTWISE,
    leaving_out,
)
from edgetune_torch.loss import Head, loss_and_gradient
from edgetune_torch.own_kernels import IN_C, others
from edgetune_torch.pointwise import norm
from edgetune_torch.row_formats import PlainRows
from edgetune_torch.vocabulary import ResidentHead
from edgetune_torch.workspace import Workspace

CPU = torch.device("cpu")
CARD = torch.device("cuda")


@pytest.mark.parametrize(
    ("dtype", "multiplies", "compiled", "said"),
    [
        (torch.bfloat16, True, True, r"C [0-9a-f]{8}"),
        (torch.bfloat16, True, False, ""),
        (torch.bfloat16, False, True, ""),
        (torch.float32, True, True, ""),
    ],
    ids=["compiled", "no compiler", "no 16-bit products", "float32"],
)
def test_a_processors_kernels_are_named_where_they_compute(
    dtype: torch.dtype, multiplies: bool, compiled: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_kernels, "cpu_multiplies_bf16", lambda: multiplies)
    monkeypatch.setattr(own_kernels, "IN_C", dict.fromkeys(IN_C, lambda: compiled))

    assert re.fullmatch(said, own_kernels.own_kernels(CPU, dtype))


def test_some_of_a_processors_kernels_are_named_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_kernels, "cpu_multiplies_bf16", lambda: True)
    here = {ATTENTION: lambda: True, LOSS: lambda: True, POINTWISE: lambda: False}
    monkeypatch.setattr(own_kernels, "IN_C", here)
    told = own_kernels.own_kernels(CPU, torch.bfloat16)

    assert re.fullmatch(r"C [0-9a-f]{8} \(attention, loss\)", told)
    assert others(told) == {POINTWISE, OF_CARDS}
    assert own_kernels.own_kernels(CPU, torch.bfloat16, frozenset({LOSS})).endswith(" (attention)")
    assert own_kernels.own_kernels(CPU, torch.bfloat16, others("")) == ""


def test_a_cards_kernels_are_named_where_they_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "here", lambda _: True)
    found = own_kernels.own_kernels(CARD, torch.bfloat16)

    assert re.fullmatch(r"Triton( \d+\.\d+.*)?", found)
    assert others(found) == OF_PROCESSORS
    assert own_kernels.own_kernels(CARD, torch.bfloat16, others("")) == ""
    assert kernels.served(CARD)
    with leaving_out(others("")):
        assert not kernels.served(CARD)
    assert kernels.served(CARD)


def made(drawn: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """Return what attention, a norm and the loss make of numbers, gradients too, by kernel."""
    q, k, v = (drawn[name].clone().requires_grad_() for name in "qkv")
    attended = FusedOnCpu.apply(q, k, v, 0.2, ((64,),), ())  # type: ignore[no-untyped-call]
    x = drawn["states"].clone().requires_grad_()
    normed = norm(x, NormKind(kind="rms", eps=1e-5), drawn["weight"], None)
    form, size = PlainRows(64, torch.bfloat16), drawn["head"].shape
    rows = ResidentHead(drawn["head"], form, (size[0], size[1]), Workspace(CPU), shared=False)
    head = Head(rows=rows, bias=None, scale=1.0, softcap=None)
    sums, slope = loss_and_gradient(drawn["x"], drawn["targets"], 64, head, scale=1.0)
    return {
        ATTENTION: [attended, *torch.autograd.grad(attended.float().sum(), (q, k, v))],
        POINTWISE: [normed, *torch.autograd.grad((normed.float() ** 2).sum(), (x,))],
        LOSS: [torch.tensor(sums.loss, dtype=torch.float64), slope],
    }


@pytest.fixture
def drawn() -> dict[str, Tensor]:
    """Numbers on which every kernel rounds otherwise than its text somewhere."""
    draw = torch.Generator().manual_seed(3)
    size = {"q": (1, 4, 64, 64), "k": (1, 2, 64, 64), "v": (1, 2, 64, 64), "head": (5000, 64),
            "x": (64, 64), "states": (512, 2048)}  # fmt: skip
    found = {name: torch.randn(x, generator=draw).bfloat16() for name, x in size.items()}
    targets = torch.randint(5000, (64,), generator=draw, dtype=torch.int32)
    return {**found, "targets": targets, "weight": torch.rand(2048, generator=draw)}


@pytest.mark.skipif(
    cpu_kernels.library() is None, reason="no processor with AVX512-BF16, or no compiler"
)
@pytest.mark.parametrize("part", sorted(OF_PROCESSORS))
def test_a_kernel_that_is_left_out_is_as_one_that_is_not_there(
    part: str, drawn: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(drawn)
    with leaving_out(frozenset({part})):
        found = made(drawn)
    monkeypatch.setattr(f"edgetune_torch.cpu_kernels.{part}.compiled", lambda: False)
    absent = made(drawn)

    for name, tensors in found.items():
        alike = [torch.equal(x, y) for x, y in zip(tensors, absent[name], strict=True)]
        assert all(alike), name
        kept = all(torch.equal(x, y) for x, y in zip(tensors, whole[name], strict=True))
        assert kept == (name != part), name
