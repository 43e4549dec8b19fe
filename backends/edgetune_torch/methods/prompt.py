"""Prompt tuning: trained rows in place of the first embeddings of every document."""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune.methods.prompt import NAME
from edgetune_torch.adaptation import Adapted


class PromptAdaptation(Adapted):
    """Fills the placeholders before every document with the trained prompt."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return embeddings (B, S, D) with the prompt at the first positions (B, S)."""
        prompt = self.parameters[NAME].to(x.dtype)
        at = positions.clamp(max=len(prompt) - 1)
        return torch.where((positions < len(prompt))[..., None], prompt[at], x)
