"""The first ranks of an adapter that was trained to be cut anywhere: DyLoRA's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.errors import UsageError
from edgetune.methods.base import Method
from edgetune.methods.lora import Lora


def truncated(adapter: LoadedAdapter, rank: int, trained: Method) -> LoadedAdapter:
    """Return the adapter's first ``rank`` components; ``trained`` is how it was trained.

    Scaled by ``alpha / rank``, as these components were trained (Valipour et al. 2023).

    Raises:
        UsageError: if it was not trained for that, or has fewer ranks.
    """
    lora = adapter.method
    if trained.kind != "dylora" or not isinstance(lora, Lora):
        raise UsageError(
            f"Only an adapter trained with --method dylora works at a lower rank; this is "
            f"{trained.kind}. Leave out --rank."
        )
    if not 1 <= rank <= lora.rank:
        raise UsageError(f"--rank must be from 1 to {lora.rank}, the adapter's; found {rank}.")
    tensors = {name: _cut(name, values, rank) for name, values in adapter.tensors.items()}
    alpha = 2.0 * lora.rank if lora.alpha is None else lora.alpha
    return replace(adapter, method=replace(lora, rank=rank, alpha=alpha), tensors=tensors)


def _cut(name: str, values: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """Return the part of a tensor that belongs to the first components; others stay whole."""
    if name.endswith(".lora_A.weight"):
        return values[:rank]
    return values[:, :rank] if name.endswith(".lora_B.weight") else values
