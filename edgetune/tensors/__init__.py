"""Safetensors files: headers, a reader and a writer of our own; numpy is imported on use."""

from __future__ import annotations

from edgetune.tensors.header import StoredTensor, read_header

__all__ = ["StoredTensor", "read_header"]
