"""LoRA and DoRA as mlx-lm writes them, and the names that it has for modules.

mlx-lm keeps ``lora_a`` (inputs, rank), ``lora_b`` (rank, outputs) and, of DoRA, ``m`` (outputs).
Its files do not say which model they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters.base import LoadedAdapter, check_shapes
from edgetune.adapters.form import FOLDED, Form, brought_over
from edgetune.adapters.modules import adaptable, exact_names
from edgetune.adapters.values import float_values
from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.methods.dora import Dora
from edgetune.methods.lora import Lora, LowRank
from edgetune.model.config import Fields
from edgetune.model.weights import listing
from edgetune.shape import ModelShape
from edgetune.tensors.header import read_header

MLX_WEIGHTS: Final = "adapters.safetensors"

PARTS: Final[Mapping[str, str]] = {
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "m": "lora_magnitude_vector",
}
"""What mlx-lm calls the tensors of a module, and what they are called here."""

_BLOCKS: Final[Mapping[str, str]] = {
    "gpt2": "model.h.{}.",
    "gpt_neox": "model.h.{}.",
    "gemma3n_text": "model.language_model.layers.{}.",
    "nemotron_h": "backbone.layers.{}.",
}
"""Where mlx-lm has the blocks of an architecture, if not where transformers has them."""

_TYPES: Final[Mapping[str, type[LowRank]]] = {"lora": Lora, "dora": Dora}


def mlx_block(shape: ModelShape, layer: int) -> str:
    """Return what mlx-lm calls a block, ending in a dot."""
    if shape.family in _BLOCKS:
        return _BLOCKS[shape.family].format(layer)
    block = shape.block(layer)
    return block if shape.inside is None else f"language_model.{block}"


def load_mlx_lm(folder: Path, config: Mapping[str, object], shape: ModelShape) -> LoadedAdapter:
    """Return the adapter in a folder that mlx-lm wrote.

    Raises:
        ModelError: if it is of a kind that is not supported, damaged, or does not fit the model.
    """
    kind = config.get("fine_tune_type", "lora")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ModelError(
            f"Unsupported adapter in {folder}: fine_tune_type {short(kind)}. Supported: "
            f"{', '.join(_TYPES)}."
        )
    stored = read_header(folder / MLX_WEIGHTS)
    known = _known_names(shape)
    strange = [name for name in stored if name not in known]
    if strange or not stored:
        named = listing([short(name) for name in sorted(strange)]) or "there are none"
        raise ModelError(
            f"The tensors of {folder} are not those of projections in blocks of this "
            f"{shape.family} model:\n  - {named}"
        )
    method = _method(
        folder, config, {known[name].rpartition(".lora_")[0] for name in stored}, shape
    )
    values = float_values(folder / MLX_WEIGHTS, stored)
    tensors = {known[name]: _turned(x) for name, x in values.items()}
    check_shapes(str(folder), method, shape, {name: x.shape for name, x in tensors.items()})
    base = config.get("model")
    found = LoadedAdapter(
        method=method, tensors=tensors, base=base if isinstance(base, str) else None
    )
    form = Form(in_file=True) if shape.family in FOLDED else None
    return brought_over(found, form, shape, str(folder))


def _known_names(shape: ModelShape) -> dict[str, str]:
    """Return every name that mlx-lm may have for a tensor, with ours."""
    return {
        f"{mlx_block(shape, layer)}{linear.module}.{theirs}": (
            f"{shape.block(layer)}{linear.module}.{ours}"
        )
        for layer in range(shape.layers)
        for linear in shape.blocks[layer].linears
        for theirs, ours in PARTS.items()
    }


def _method(
    folder: Path, config: Mapping[str, object], modules: set[str], shape: ModelShape
) -> LowRank:
    """Return the method; mlx-lm's scale multiplies the update as it is."""
    outer = Fields(config)
    fields = Fields(outer.table("lora_parameters"))
    rank, scale = fields.size("rank"), fields.number("scale", 20.0)
    dropout = fields.number("dropout", 0.0)
    if problems := [*outer.problems, *fields.problems]:
        raise ModelError(f"The adapter in {folder} cannot be used:\n  - {listing(problems)}")
    targets = exact_names(shape, [name for name in adaptable(shape) if name in modules])
    cls = _TYPES[str(config.get("fine_tune_type", "lora"))]
    return cls(rank=rank, alpha=scale * rank, dropout=dropout, targets=targets)


def _turned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.T)
