"""What the model is: from a folder, a hub id or a profile name to shapes and stored tensors."""

from __future__ import annotations

from edgetune.model.families import shape_of
from edgetune.model.local import LocalModel
from edgetune.model.resolve import ModelSource, open_model, resolve
from edgetune.tensors.header import StoredTensor

__all__ = ["LocalModel", "ModelSource", "StoredTensor", "open_model", "resolve", "shape_of"]
