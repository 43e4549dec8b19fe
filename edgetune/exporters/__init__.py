"""What a run hands over: the adapter, or the model with the adapter merged into its weights."""

from __future__ import annotations

from edgetune.exporters.base import EXPORTERS, Exported, ExportRequest, export

__all__ = ["EXPORTERS", "ExportRequest", "Exported", "export"]
