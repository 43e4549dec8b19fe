"""Reading an adapter, our own or one that PEFT saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters.base import (
    CONFIG,
    PEFT_TYPES,
    WEIGHTS,
    LoadedAdapter,
    adapter_format,
    check_shapes,
)
from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.model import StoredTensor
from edgetune.model.weights import listing, read_json
from edgetune.shape import ModelShape
from edgetune.tensors.header import read_header
from edgetune.tensors.reader import read_tensor

_FLOATS: Final = frozenset({"float16", "bfloat16", "float32", "float64"})


class NotFiniteError(ModelError):
    """An adapter holds NaN or infinite values and nothing else is wrong with it."""


def load_adapter(folder: Path, shape: ModelShape) -> LoadedAdapter:
    """Return the adapter in a folder, for a model of this shape.

    Raises:
        ModelError: if files are missing or damaged, if the adapter is of a kind that is not
            supported, or if it does not fit the model; every reason is named.
    """
    config = _read_config(folder)
    stored = _stored_tensors(folder)
    written = adapter_format(_kind(folder, config))
    named = {name.removeprefix(written.prefix): tensor for name, tensor in stored.items()}
    method = written.method(config, named, shape)
    shapes = {name: tensor.shape for name, tensor in named.items()}
    check_shapes(str(folder), method, shape, shapes)
    base = config.get("base_model_name_or_path")
    return LoadedAdapter(
        method=method,
        tensors=_values(folder / WEIGHTS, named),
        base=base if isinstance(base, str) else None,
    )


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


def _values(file: Path, stored: Mapping[str, StoredTensor]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors in float32.

    Raises:
        ModelError: naming all that are not of floating-point numbers.
        NotFiniteError: naming all with values that are not finite.
    """
    if problems := [f"{n}: is {x.dtype}" for n, x in stored.items() if x.dtype not in _FLOATS]:
        raise ModelError(_unusable(file, problems))
    values: dict[str, NDArray[np.float32]] = {}
    for name, tensor in stored.items():
        values[name] = read_tensor(tensor).astype(np.float32, copy=False)
        if not _is_finite(values[name]):
            problems.append(f"{name}: has values that are not finite (NaN or infinite)")
    if problems:
        raise NotFiniteError(_unusable(file, problems))
    return values


def _unusable(file: Path, problems: list[str]) -> str:
    return (
        f"The tensors in {file} cannot be used; expected finite floating-point numbers. "
        f"Save or copy the adapter again.\n  - {listing(problems)}"
    )


def _is_finite(values: NDArray[np.float32]) -> bool:
    """Tell whether all values are finite, without a mask of their size; (0,) is."""
    return not values.size or bool(np.isfinite(values.min()) and np.isfinite(values.max()))


def _kind(folder: Path, config: Mapping[str, object]) -> str:
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in PEFT_TYPES:
        raise ModelError(
            f"Unsupported adapter in {folder}: peft_type {short(peft_type)}. "
            f"Supported: {', '.join(PEFT_TYPES)}."
        )
    return PEFT_TYPES[peft_type]
