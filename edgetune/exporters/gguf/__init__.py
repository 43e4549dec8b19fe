"""A run as one GGUF file: what llama.cpp and everything built on it loads."""

from __future__ import annotations

from edgetune.exporters.gguf.export import export_gguf

__all__ = ["export_gguf"]
