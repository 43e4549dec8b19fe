"""What depends on the processor is tested both ways, in every run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from products import products as as_on_a_processor


@pytest.fixture(params=["16-bit products", "float32 products"])
def products(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute products of bfloat16 as a processor with, and one without, units for them does."""
    with as_on_a_processor(multiplies_16bit=request.param == "16-bit products"):
        yield str(request.param)
