"""Reading an adapter: our own, one that PEFT saved, or one of mlx-lm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.adapters.base import (
    CONFIG,
    WEIGHTS,
    LoadedAdapter,
    adapter_format,
    check_shapes,
    peft_kinds,
)
from edgetune.adapters.form import brought_over, form_of
from edgetune.adapters.mlx_lm import MLX_WEIGHTS, load_mlx_lm
from edgetune.adapters.values import float_values
from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.model import StoredTensor
from edgetune.model.names import is_for_images
from edgetune.model.weights import read_json
from edgetune.shape import ModelShape
from edgetune.tensors.header import read_header, read_metadata


def load_adapter(folder: Path, shape: ModelShape) -> LoadedAdapter:
    """Return the adapter in a folder, for a model of this shape.

    Raises:
        ModelError: if files are missing or damaged, if the adapter is of a kind that is not
            supported, or if it does not fit the model; every reason is named.
    """
    config = _read_config(folder)
    if "peft_type" not in config and (folder / MLX_WEIGHTS).is_file():
        return load_mlx_lm(folder, config, shape)
    stored = _stored_tensors(folder)
    written = adapter_format(_kind(folder, config))
    names = written.own_names(stored, config, shape)
    unused = {name for name in stored if is_for_images(shape, names[name])}
    named = {names[name]: tensor for name, tensor in stored.items() if name not in unused}
    if len(named) + len(unused) < len(stored):
        raise ModelError(f"{folder} has tensors twice, under several names. Save it again.")
    method = written.method(config, named, shape)
    twice = {x: own for x, own in written.copies(named, shape).items() if x in named}
    lost = written.left_out(config, named)
    sizes = {x.name: x.shape for x in method.tensors(shape) if x.name in lost}
    shapes = {name: x.shape for name, x in named.items() if name not in twice} | sizes
    check_shapes(str(folder), method, shape, shapes)
    base = config.get("base_model_name_or_path")
    values = {
        name: written.own_values(name, x, config, shape)
        for name, x in float_values(folder / WEIGHTS, named).items()
    }
    _drop_copies(folder, values, twice)
    form = form_of(read_metadata(folder / WEIGHTS), config, str(folder / WEIGHTS))
    found = LoadedAdapter(
        method=method,
        tensors={**values, **written.drawn(config, sizes)},
        base=base if isinstance(base, str) else None,
        unused=len(unused),
    )
    return brought_over(found, form, shape, str(folder))


def _drop_copies(folder: Path, values: dict[str, Any], twice: Mapping[str, str]) -> None:
    """Leave out tensors that are the same as others, which are one matrix of the model.

    Raises:
        ModelError: if they are not the same.
    """
    for name, own in twice.items():
        if not np.array_equal(values.pop(name), values[own]):
            raise ModelError(
                f"{name} and {own} in {folder} were trained apart, and are one matrix of this model. "
                "PEFT keeps them together with ensure_weight_tying=True."
            )


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, and no model beside it."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str | None:
    """Return what an adapter's folder calls the model that it was trained on, if it says it.

    Raises:
        ModelError: if its config cannot be read.
    """
    config = _read_config(folder)
    names = (config.get(name) for name in ("base_model_name_or_path", "model"))
    return next((name for name in names if isinstance(name, str) and name), None)


def _read_config(folder: Path) -> dict[str, object]:
    file = folder / CONFIG
    if not file.is_file():
        raise ModelError(f"{folder} has no {CONFIG}, so that it is not an adapter's folder.")
    config = read_json(file)
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a JSON object. Save or copy the adapter again.")
    return config


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if (folder / "adapter_model.bin").is_file():
        raise ModelError(
            f"{folder} has its adapter only as a pickle, which can run code and is never opened. "
            f"Save it again with PEFT, which writes {WEIGHTS}."
        )
    raise ModelError(f"{folder} has no {WEIGHTS}. Save or copy the adapter again.")


def _kind(folder: Path, config: Mapping[str, object]) -> str:
    peft_type, kinds = config.get("peft_type"), peft_kinds()
    if not isinstance(peft_type, str) or peft_type not in kinds:
        raise ModelError(
            f"Unsupported adapter in {folder}: peft_type {short(peft_type)}. "
            f"Supported: {', '.join(kinds)}."
        )
    return kinds[peft_type]
