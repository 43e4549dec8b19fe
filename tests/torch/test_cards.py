"""A plan's card is found again among several."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from edgetune_torch.cards import card_number


@pytest.mark.parametrize(
    ("uuid", "number"), [("GPU-aa", 0), ("GPU-bb", 1), ("GPU-cc", 2), (None, 2), ("GPU-", 2)]
)
def test_a_card_is_known_by_what_the_driver_calls_it(
    uuid: str | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [SimpleNamespace(uuid="aa"), SimpleNamespace(uuid="bb")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)

    assert card_number(uuid) == number
