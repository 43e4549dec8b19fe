"""The engine on processors that this one is not: with 16-bit products and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def products(*, multiplies_16bit: bool) -> Iterator[None]:
    """Let products of bfloat16 be computed as where they are, or are not, in the processor.

    torch multiplies bfloat16 on every processor: where there are no units for it, slowly.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgetune_torch.precision.cpu_multiplies_bf16", lambda: multiplies_16bit)
        yield
