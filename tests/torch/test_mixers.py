"""Mixers that carry a state: in pieces, packed and cached they are the plain recurrence."""

from __future__ import annotations

from itertools import pairwise
from pkgutil import iter_modules
from typing import Any

import pytest
import torch
from recurrences import CASES, PLAIN, apart, random_inputs, token_by_token, under_loss

import edgetune.network.mixers
from edgetune.mixer import PIECE, SPAN
from edgetune_torch.mixers import mixed, mixed_after

EXACT = 1e-9


def test_every_kind_is_tried() -> None:
    kinds = {module.name for module in iter_modules(edgetune.network.mixers.__path__)}
    assert kinds == PLAIN.keys() == {mixer.kind for mixer, _ in CASES.values()}


@pytest.mark.parametrize("case", CASES)
def test_pieces_are_the_recurrence_and_so_is_their_way_back(case: str) -> None:
    mixer, documents = CASES[case]
    (inputs, own), wanted = random_inputs(mixer, documents), under_loss(documents)
    found = mixed(mixer)(mixer, inputs, own, documents)
    expected = token_by_token(mixer, inputs, own, documents)
    weights, each = torch.randn_like(found) * wanted, [*inputs, *own.values()]
    ours, theirs = (torch.autograd.grad((y * weights).sum(), each) for y in (found, expected))

    assert apart(found * wanted, expected * wanted) < EXACT
    for one, other in zip(ours, theirs, strict=True):
        assert apart(one, other) < EXACT


@pytest.mark.parametrize("cuts", [(1, 2), (PIECE, PIECE + 1), (70, 71, SPAN + 16)], ids=str)
@pytest.mark.parametrize("kind", PLAIN)
def test_tokens_go_on_from_those_before(kind: str, cuts: tuple[int, ...]) -> None:
    mixer = next(mixer for mixer, _ in CASES.values() if mixer.kind == kind)
    documents = ((SPAN + 70,),)
    inputs, own = random_inputs(mixer, documents)
    inputs, own = [x.detach() for x in inputs], {role: x.detach() for role, x in own.items()}
    expected, parts = token_by_token(mixer, inputs, own, documents), []
    before: Any = None
    for start, stop in pairwise((0, *cuts, expected.shape[1])):
        tokens = [x[:, start:stop] for x in inputs]
        part, before = mixed_after(mixer)(mixer, tokens, own, before)
        parts.append(part)

    assert apart(torch.cat(parts, 1), expected) < EXACT
