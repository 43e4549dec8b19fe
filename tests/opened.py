"""Opened models for tests that look below the session."""

from __future__ import annotations

import torch

from edgetune.model import LocalModel
from edgetune.settings.spec import Quantization
from edgetune_torch.engine import Engine
from edgetune_torch.load import Loader
from edgetune_torch.opening import build_engine


def open_decoder(model: LocalModel, quantization: Quantization = "none") -> Engine:
    """Return an engine over a model's own weights, in float32."""
    weights = Loader(model, torch.device("cpu"), quantization).load()
    return build_engine(model, weights, torch.float32, chunk=7)
