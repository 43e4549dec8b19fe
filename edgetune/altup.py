"""AltUp: several streams, of which a block computes one and moves the others (Gemma 3n).

Baykal et al. 2023, "Alternating Updates for Efficient Transformers". N streams of D numbers lie side
by side in what passes between blocks, (B, S, N D). A block sees a token's streams h, mixes them by
what a router says of the one that is computed, computes that one, and corrects all of them by how
far it came out from what was predicted:

    p_j = h_j + sum_i C[j, i] h_i        C = prediction(router(h_a))
    k_j = p_j + c_j (block(p_a) - p_a)   c = 1 + correction(router(block(p_a)))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AltUpRole = Literal["altup_router", "altup_prediction", "altup_correction", "altup_scale"]
"""Tensors of a block: they stay as they are in every method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AltUp:
    """How many streams there are, which is computed, and where the tensors are."""

    count: int
    active: int
    scaled: bool
    """Whether what reads a block's own numbers of a token is multiplied by a vector first."""
    module: str
    """Inside a block."""
    entries: tuple[str, ...]
    """Modules of the projections of the embedding that all streams but the first begin as."""
    exits: tuple[str, ...]
    """Those of the streams but the first before all are averaged."""

    def tensors(self, hidden: int) -> tuple[tuple[AltUpRole, str, tuple[int, ...]], ...]:
        """Return role, name and shape of the tensors of a block."""
        count, module = self.count, self.module
        return (
            ("altup_router", f"{module}.modality_router.weight", (count, hidden)),
            ("altup_prediction", f"{module}.prediction_coefs.weight", (count * count, count)),
            ("altup_correction", f"{module}.correction_coefs.weight", (count, count)),
            ("altup_scale", f"{module}.correct_output_scale", (hidden,)),
        )
