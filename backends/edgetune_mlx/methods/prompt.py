"""Prompt tuning: trained rows in place of the first embeddings of every document."""

from __future__ import annotations

import mlx.core as mx

from edgetune.methods.prompt import NAME
from edgetune_mlx.adaptation import Adapted


class PromptAdaptation(Adapted):
    """Fills the placeholders before every document with the trained prompt."""

    def embed(self, x: mx.array, positions: mx.array) -> mx.array:
        """Return embeddings (B, S, D) with the prompt at the first positions (B, S)."""
        prompt = self.parameters[NAME].astype(x.dtype)
        rows = prompt[mx.minimum(positions, len(prompt) - 1)]
        return mx.where((positions < len(prompt))[..., None], rows, x)
