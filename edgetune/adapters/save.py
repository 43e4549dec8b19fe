"""Writing an adapter: the same tensors give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters.base import CONFIG, WEIGHTS, adapter_format, check_shapes
from edgetune.adapters.form import Form
from edgetune.files import write_text
from edgetune.methods.base import Method
from edgetune.shape import ModelShape
from edgetune.tensors.writer import Outgoing, write_safetensors


def save_adapter(
    folder: Path,
    method: Method,
    shape: ModelShape,
    tensors: Mapping[str, NDArray[Any]],
    *,
    base: str,
) -> dict[str, str]:
    """Write an adapter to a folder, each file whole or not at all; return their SHA-256.

    ``tensors`` has the names and shapes of ``method.on_disk()`` and is written as float32;
    ``base`` is what ``base_model_name_or_path`` shall say.

    Raises:
        ModelError: naming every tensor that is missing, unknown or of another shape.
        UsageError: if the method cannot be written in PEFT's layout.
    """
    method = method.on_disk()
    written = adapter_format(method.kind)
    check_shapes(str(folder), method, shape, {name: x.shape for name, x in tensors.items()})
    config = {
        "base_model_name_or_path": base,
        "inference_mode": True,
        **written.config(method, shape),
    }
    twice = written.copies(tensors, shape)
    sources = {**{name: name for name in tensors}, **twice}
    names = written.stored_names(sources, shape)
    named = [
        Outgoing.of(
            names[name], written.stored_values(name, np.asarray(tensors[source]), shape), "float32"
        )
        for name, source in sorted(sources.items())
    ]
    folder.mkdir(exist_ok=True)
    return {
        WEIGHTS: write_safetensors(folder / WEIGHTS, named, told=Form.of(shape).written()),
        CONFIG: write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n"),
    }
