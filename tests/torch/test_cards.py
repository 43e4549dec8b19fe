"""A plan's card is found again among several, and tried before it is used."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from edgetune_torch import cards, kernels
from edgetune_torch.cards import card_number


@pytest.mark.parametrize(
    ("uuid", "number"), [("GPU-aa", 0), ("GPU-bb", 1), ("GPU-cc", 2), (None, 2), ("GPU-", 2)]
)
def test_a_card_is_known_by_what_the_driver_calls_it(
    uuid: str | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [SimpleNamespace(uuid="aa"), SimpleNamespace(uuid="bb")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_properties", found.__getitem__)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)

    assert card_number(uuid) == number


def test_a_card_whose_kernels_do_not_start_is_refused_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    monkeypatch.setattr(kernels, "served", lambda _: True)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    here = torch.device("cpu")
    assert cards._kernel_fault(here) is None

    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC.")

    monkeypatch.setattr(kernels, "launch", no_compiler)
    fault = cards._kernel_fault(here)
    assert fault is not None
    assert "Failed to find C compiler" in fault
    assert "Type: sudo apt install gcc python3-dev" in fault


@pytest.mark.parametrize(
    ("cuda", "error", "told"),
    [
        (None, None, "is built without CUDA"),
        ("13.0", RuntimeError("The NVIDIA driver is too old (found version 11040)."), "too old"),
        ("13.0", RuntimeError("CUDA error: no kernel image is available"), "no kernel image"),
    ],
)
def test_what_torch_cannot_use_is_told(
    cuda: str | None, error: Exception | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        assert error is not None
        raise error

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_device", fails)
    usable = cards.usable_card("GPU-aa")

    assert not usable.value
    assert told in usable.because
    assert "`edgetune doctor` says what to type" in usable.because
