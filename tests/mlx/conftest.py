"""What every test of the MLX backend gives back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlx_sessions import close_all


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close what a test leaves open."""
    yield
    close_all()
