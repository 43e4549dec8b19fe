"""Mamba-2's mixer in pieces, packed and cached is the plain recurrence, and so is its way back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from recurrences import apart, random_scan_inputs, scanned_by_token, under_loss
from torch import Tensor

from edgetune.mixer import PIECE, SPAN, StateSpace
from edgetune_torch.documents import Documents
from edgetune_torch.state_space import Parameters, state_space, state_space_after

EXACT = 1e-9

CASES: dict[str, tuple[StateSpace, Documents]] = {
    "a span and a rest": (
        StateSpace(heads=4, groups=2, value_dim=3, key_dim=5, taps=4, module=""),
        ((SPAN + 70,), (SPAN + 70,)),
    ),
    "packed": (
        StateSpace(heads=3, groups=3, value_dim=4, key_dim=6, taps=3, module=""),
        ((5, 70, 56), (64, 1, 66)),
    ),
    "packed over spans": (
        StateSpace(heads=2, groups=1, value_dim=2, key_dim=3, taps=4, module=""),
        ((SPAN - 2, 4, 61), (3, SPAN + 40)),
    ),
    "padded": (
        StateSpace(heads=2, groups=1, value_dim=4, key_dim=4, taps=2, module=""),
        ((100, 40), (120,)),
    ),
    "less than a piece, steps within limits": (
        StateSpace(
            heads=4, groups=2, value_dim=4, key_dim=8, taps=4, module="", least_step=0.5,
            most_step=1.2,
        ),
        ((7,),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_pieces_are_the_recurrence_and_so_is_their_way_back(case: str) -> None:
    mixer, documents = CASES[case]
    inputs, wanted = random_scan_inputs(mixer, documents), under_loss(documents)
    found = state_space(*inputs[:2], _own(inputs), mixer, documents)
    expected = scanned_by_token(inputs, mixer, documents)
    weights = torch.randn_like(found) * wanted
    ours, theirs = (torch.autograd.grad((y * weights).sum(), inputs) for y in (found, expected))

    assert apart(found * wanted, expected * wanted) < EXACT
    for own, other in zip(ours, theirs, strict=True):
        assert apart(own, other) < EXACT


@pytest.mark.parametrize("cuts", [(1, 2), (PIECE, PIECE + 1), (70, 71, 272)], ids=str)
def test_tokens_go_on_from_those_before(cuts: tuple[int, ...]) -> None:
    mixer, documents = CASES["a span and a rest"]
    inputs = [x.detach() for x in random_scan_inputs(mixer, documents[:1])]
    expected, before, parts = scanned_by_token(inputs, mixer, documents[:1]), None, []
    for start, stop in pairwise((0, *cuts, expected.shape[1])):
        tokens = (x[:, start:stop] for x in inputs[:2])
        part, before = state_space_after(*tokens, _own(inputs), mixer, before)
        parts.append(part)

    assert apart(torch.cat(parts, 1), expected) < EXACT


def _own(inputs: list[Tensor]) -> Parameters:
    conv, conv_bias, a_log, dt_bias, skip = inputs[2:]
    return Parameters(conv=conv, conv_bias=conv_bias, a_log=a_log, dt_bias=dt_bias, skip=skip)
