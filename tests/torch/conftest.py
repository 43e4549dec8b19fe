"""What depends on the processor is tested as it is on every processor, in every run."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["16-bit products", "float32 products"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let products of bfloat16 be computed as on a processor with, and on one without, them.

    torch multiplies bfloat16 on every processor: where there are no units for it, slowly.
    """
    multiplies = request.param == "16-bit products"
    monkeypatch.setattr("edgetune_torch.precision.cpu_multiplies_bf16", lambda: multiplies)
    return str(request.param)
