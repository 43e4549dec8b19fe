"""Averages that stay in the host's memory: the same numbers, elsewhere. A card's pages are faked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgetune.device.capability import capability_of
from edgetune.device.profiles import profile_device
from edgetune.memory.optimizer import state_bytes
from edgetune.settings.spec import PAGED
from edgetune_torch.optimizer import AdamW

SIZES = {"large": (80, 130), "small": (100,), "exact": (4096,)}


class Pages:
    """Page-locked memory of a host without a card: plain memory that is counted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.nbytes = 0
        zeros = torch.zeros

        def counted(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            made = zeros(*size, **options)
            if pin_memory:
                assert made.device.type == "cpu"
                self.nbytes += made.nbytes
            return made

        patch.setattr(torch, "zeros", counted)


def optimizer(name: str) -> AdamW:
    torch.manual_seed(0)
    own = {key: torch.nn.Parameter(torch.randn(size)) for key, size in SIZES.items()}
    made = AdamW("adamw-8bit", own, dict.fromkeys(own, 1.0), 0.1)
    made.name = name  # the constructor asks for a card
    return made


def taken(one: AdamW, first: int, last: int) -> None:
    for number in range(first, last):
        torch.manual_seed(number)
        for x in one.parameters.values():
            x.grad = torch.randn_like(x)
        one.step(1e-2, number)


def test_pages_change_no_bit_and_go_on_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, pages = optimizer("adamw-8bit"), Pages(monkeypatch)
    paged = optimizer(PAGED)
    for one in (plain, paged):
        taken(one, 1, 4)
    there, here = plain.state(), paged.state()
    assert there.keys() == here.keys()
    assert all(np.array_equal(here[name], x) for name, x in there.items())
    for name, x in plain.parameters.items():
        assert torch.equal(paged.parameters[name], x)

    again = optimizer("adamw-8bit")  # a run that began with pages goes on without
    for name, x in paged.parameters.items():
        again.parameters[name].data.copy_(x.detach())
    again.restore(here)
    for one in (again, paged):
        taken(one, 4, 6)
    assert all(torch.equal(again.parameters[name], x) for name, x in paged.parameters.items())
    assert pages.nbytes > 0


def test_what_pages_hold_is_what_a_plan_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(monkeypatch)
    optimizer(PAGED).prepare()
    sizes = [torch.Size(size).numel() for size in SIZES.values()]

    assert pages.nbytes == state_bytes(sizes, "adamw-8bit") - state_bytes(sizes, PAGED)
    assert state_bytes(sizes, PAGED) == 2 * 4 * 100  # small tensors stay on the card, in float32


def test_pages_are_offered_where_the_host_has_other_memory() -> None:
    assert PAGED in capability_of(profile_device("rtx-4060")).optimizers
    assert PAGED not in capability_of(profile_device("jetson-agx-orin-64gb")).optimizers
    assert PAGED not in capability_of(profile_device("m2-8gb")).optimizers
