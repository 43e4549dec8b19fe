"""A session says which kernels of our own compute: a state keeps it, so that resuming can compare."""

from __future__ import annotations

import re

import pytest
import torch

from edgetune_torch import cpu_kernels, kernels, own_kernels

CPU = torch.device("cpu")


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
    monkeypatch.setattr(cpu_kernels, "library", lambda: object() if compiled else None)

    assert re.fullmatch(said, own_kernels.own_kernels(CPU, dtype))


def test_a_cards_kernels_are_named_where_they_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "served", lambda device: device.type == "cuda")

    found = own_kernels.own_kernels(torch.device("cuda"), torch.bfloat16)
    assert re.fullmatch(r"Triton( \d+\.\d+.*)?", found)
