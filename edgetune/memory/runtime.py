"""What a process takes before it holds a single tensor of the model."""

from __future__ import annotations

LIBRARIES = {"cpu": 285_000_000, "cuda": 600_000_000, "mlx": 400_000_000}
"""Interpreter and libraries: training on a processor holds 270 MB before its first tensor; on CUDA
the device's context instead (290 to 670 MB by version)."""

TOKEN = 400
"""A token in the tokenizer's tables: 370 bytes measured, for vocabularies of 32 and 128 thousand
with a merge for each token."""


def runtime_bytes(kind: str, vocabulary: int) -> int:
    """Return what the libraries hold on a kind of device, and the tokenizer where that is host
    memory.
    """
    return LIBRARIES[kind] + (0 if kind == "cuda" else TOKEN * vocabulary)
