"""Several low-rank adapters over one base made into one, without a framework."""

from __future__ import annotations

from edgetune.combining.combine import combined
from edgetune.combining.recipe import HOW, How, Recipe
from edgetune.combining.simplex import Found, minimise

__all__ = ["HOW", "Found", "How", "Recipe", "combined", "minimise"]
