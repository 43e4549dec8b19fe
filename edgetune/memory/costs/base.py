"""The terms in which kinds of devices differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TOKEN = 400
"""A token in the tokenizer's tables: 370 bytes measured, for vocabularies of 32 and 128 thousand
with a merge for each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What of a kind of device decides bytes, whatever is computed on it."""

    libraries: int
    """Bytes of interpreter and libraries, or a card's context, before the first tensor."""
    token: int = TOKEN
    """Bytes of a token in the tokenizer's tables; 0 where they are not in the memory that is planned."""
    lazy: bool = False
    """Whether a graph is evaluated as a whole, so that a value dies at its last use in it."""
    widens: bool = False
    """Whether 16-bit activations become float32 to be multiplied where nothing multiplies them."""
    keeps_scratch: bool = False
    """Whether buffers of products are kept instead of given back to an allocator."""
    kernels: int = 0
    """Bytes of the kernels that are kept for 16-bit products."""
    update_arrays: int
    """Float32 arrays that an update of a tensor holds, weights and both averages among them."""
    updated_at_once: int | None
    """Elements of a tensor that are updated at a time; None: all."""
    reused: int = 0
    """Bytes by which arrays are larger that are given memory which larger ones had before."""
    file_codes: Mapping[str, float] = field(default_factory=dict)
    """Bytes that a weight in a kind of blocks of a GGUF file takes before it is a number."""

    def runtime(self, vocabulary: int) -> int:
        """Return what a process takes before it holds a single tensor of the model."""
        return self.libraries + self.token * vocabulary
