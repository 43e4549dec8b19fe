"""What a process takes before it holds a single tensor of the model."""

from __future__ import annotations

RUNTIME_BYTES = {"cpu": 285_000_000, "cuda": 600_000_000, "mlx": 400_000_000}
"""Interpreter and libraries: training on a processor holds 270 MB before its first tensor; on CUDA
the device's context instead (290 to 670 MB by version)."""
