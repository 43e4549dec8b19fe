"""Mixers that carry a state: in pieces, packed and cached they are the plain recurrence."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from recurrences import apart, convolved, random_inputs, token_by_token, under_loss
from torch import Tensor

from edgetune.mixer import PIECE, GatedDelta
from edgetune_torch.convolution import short_convolution, short_convolution_after
from edgetune_torch.documents import Documents
from edgetune_torch.gated_delta import Parameters, gated_delta, gated_delta_after

EXACT = 1e-9

CASES: dict[str, tuple[GatedDelta, Documents]] = {
    "two pieces and a rest": (
        GatedDelta(key_heads=2, value_heads=4, key_dim=5, value_dim=3, taps=4, module=""),
        ((150,), (150,)),
    ),
    "packed": (
        GatedDelta(key_heads=3, value_heads=3, key_dim=4, value_dim=6, taps=3, module=""),
        ((5, 70, 56), (64, 1, 66)),
    ),
    "padded": (
        GatedDelta(key_heads=1, value_heads=2, key_dim=4, value_dim=4, taps=2, module=""),
        ((100, 40), (120,)),
    ),
    "less than a piece": (
        GatedDelta(key_heads=1, value_heads=2, key_dim=8, value_dim=8, taps=4, module=""),
        ((7,),),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_pieces_are_the_recurrence_and_so_is_their_way_back(case: str) -> None:
    mixer, documents = CASES[case]
    inputs, wanted = random_inputs(mixer, documents), under_loss(documents)
    found = gated_delta(*inputs[:3], _own(inputs), mixer, documents)
    expected = token_by_token(inputs, mixer, documents)
    weights = torch.randn_like(found) * wanted
    ours, theirs = (torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected))

    assert apart(found * wanted, expected * wanted) < EXACT
    for own, other in zip(ours, theirs, strict=True):
        assert apart(own, other) < EXACT


@pytest.mark.parametrize("cuts", [(1, 1), (PIECE, PIECE + 1), (70, 71, 72)], ids=str)
def test_tokens_go_on_from_those_before(cuts: tuple[int, ...]) -> None:
    mixer, _ = CASES["two pieces and a rest"]
    documents = ((150,),)
    inputs = [x.detach() for x in random_inputs(mixer, documents)]
    expected, before, parts = token_by_token(inputs, mixer, documents), None, []
    for start, stop in pairwise((0, *cuts, 150)):
        tokens = (x[:, start:stop] for x in inputs[:3])
        part, before = gated_delta_after(*tokens, _own(inputs), mixer, before)
        parts.append(part)

    assert apart(torch.cat(parts, 1), expected) < EXACT


@pytest.mark.parametrize("documents", [((19,), (19,)), ((4, 1, 14), (9,))], ids=str)
def test_a_short_convolution_sees_the_last_tokens_of_its_document(documents: Documents) -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = ((2, 19, 15), (5, 1, 3), (5,))
    inputs = [torch.randn(s, dtype=torch.float64, generator=draw).requires_grad_() for s in sizes]
    x, weight, bias = inputs
    found = short_convolution(x, weight, bias, documents)
    b, c, u = x.chunk(3, -1)
    expected = c * (convolved(b * u, weight, documents) + bias)
    weights = torch.randn_like(found) * under_loss(documents, 19)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected))
    first, kept = short_convolution_after(x[:1, :3].detach(), weight.detach(), bias.detach(), None)
    second, _ = short_convolution_after(x[:1, 3:4].detach(), weight.detach(), bias.detach(), kept)

    for own, other in zip(ours, theirs, strict=True):
        assert apart(own, other) < EXACT
    assert apart(torch.cat((first, second), 1), found[:1, :4].detach()) < EXACT


def _own(inputs: list[Tensor]) -> Parameters:
    return Parameters(conv=inputs[3], a_log=inputs[4], dt_bias=inputs[5])
