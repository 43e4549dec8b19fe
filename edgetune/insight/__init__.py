"""What adapters learned, seen from their numbers: norms, singular values, words, similarity."""

from __future__ import annotations

from edgetune.insight.likeness import likeness
from edgetune.insight.subspaces import by_chance, overlaps
from edgetune.insight.turning import Turning, correlation, turning
from edgetune.insight.updates import Spectrum, inner, spectrum, updates
from edgetune.insight.words import Neighbour, nearest_tokens

__all__ = [
    "Neighbour", "Spectrum", "Turning", "by_chance", "correlation", "inner", "likeness",
    "nearest_tokens", "overlaps", "spectrum", "turning", "updates",
]  # fmt: skip
