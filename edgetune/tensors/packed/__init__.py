"""Matrices that a checkpoint has as codes and scales, in several tensors: FP8, NF4, GPTQ, AWQ, MLX.

What they consist of is data (:mod:`kinds`, without numpy); how they become numbers is one file a kind.
"""

from __future__ import annotations

from edgetune.tensors.packed.kinds import PackedTensor

__all__ = ["PackedTensor"]
