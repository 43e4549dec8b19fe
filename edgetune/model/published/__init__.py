"""Checkpoints that are published quantized: which are read, and what their matrices are made of."""

from __future__ import annotations

from edgetune.model.published.biases import needless_biases
from edgetune.model.published.registry import assembled, refuse_unread, untold, written_plain

__all__ = ["assembled", "needless_biases", "refuse_unread", "untold", "written_plain"]
