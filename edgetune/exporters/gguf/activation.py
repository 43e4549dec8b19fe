"""The numbers of xIELU, which llama.cpp wants in the metadata: a list of each, by layer."""

from __future__ import annotations

from typing import get_args

from edgetune.mixer import XieluRole
from edgetune.model import LocalModel
from edgetune.model.gguf_names import XIELU
from edgetune.tensors.gguf.writer import Value


def activation_metadata(model: LocalModel) -> dict[str, Value]:
    """Return what files say of activations with numbers of their own; nothing of most models."""
    shape = model.shape
    if shape.blocks[0].xielu is None:
        return {}
    found = {}
    for role in get_args(XieluRole):
        names = [f"{shape.block(i)}{block.xielu}.{role}" for i, block in enumerate(shape.blocks)]
        numbers = [float(model.read(name).reshape(())) for name in names]
        found[f"{XIELU}{role}"] = Value("float32", numbers)
    return found
