"""Every test in this folder needs an NVIDIA card."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _card() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA card")
