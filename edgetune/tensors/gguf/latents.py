"""A matrix that makes keys and values of latents, of which a file has two, one of them turned.

llama.cpp attends to the latents themselves: the part that makes keys lies by head as (latents,
keys), the part that makes values as (values, latents).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.header import StoredTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentTensor(GgufTensor):
    """Rows of each head: first those of its keys, then those of its values; plain numbers.

    ``dtype`` is that of both parts if these are plain, else float32.
    """

    keys: GgufTensor
    """(heads * latents, keys of a head)."""
    values: GgufTensor
    """(heads * values of a head, latents)."""
    heads: int

    @property
    def pieces(self) -> tuple[StoredTensor, ...]:
        """Both parts."""
        return self.keys, self.values

    @property
    def made(self) -> bool:
        """True: of both parts."""
        return True
