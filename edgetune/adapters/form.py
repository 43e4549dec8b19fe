"""Beside which weights an adapter was trained: with a model's multipliers in them, or beside them.

The same model can lie in two forms. A folder of Falcon-H1 has multipliers beside its weights, its GGUF
file (and mlx-lm) has them in the weights and says no more of them; and where llama.cpp scales scores
otherwise than a model does, files have queries that make up for it. An update that was trained over
one form is wrong over the other by these factors. So an adapter's file says what its form was, and
is brought into that of the model which it is loaded over. Prompts, prefixes and what adds to the
stream are the same in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isclose, sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters.base import LoadedAdapter
from edgetune.errors import ModelError, UsageError
from edgetune.files import parsed_json
from edgetune.methods.base import AdapterTensor
from edgetune.methods.norm import PART
from edgetune.model.config import is_number
from edgetune.model.gguf_stores import names_file
from edgetune.network.mixers.state_space import StateSpace
from edgetune.settings.parse import checked
from edgetune.shape import BlockShape, Linear, ModelShape

KEY: Final = "edgetune.form"
"""Under which a file of tensors says the form."""

FOLDED: Final = frozenset({"falcon_h1"})
"""Families whose GGUF files, and mlx-lm, have multipliers in the weights."""

SCORES: Final = "scores"
"""What scores are multiplied by, as a multiple of one by the square root of a head's channels."""

_PARTS: Final = 5
"""Of what Mamba's projection makes: gate, values, keys, queries and steps."""

Factor = float | NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a model multiplies by beside its weights; what is not named is multiplied by 1.

    ``layers`` has the multipliers of projections by role, of Mamba's parts and of scores, each
    layer by layer.
    """

    in_file: bool = False
    """Whether multipliers can be in the weights: those of a GGUF file, or mlx-lm's."""
    embedding: float = 1.0
    logits: float = 1.0
    layers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, shape: ModelShape) -> Form:
        """Return the form of a model."""
        found = [dict(_multipliers(block)) for block in shape.blocks]
        names = sorted({name for each in found for name in each})
        every = {name: tuple(each.get(name, 1.0) for each in found) for name in names}
        return cls(
            in_file=shape.in_file,
            embedding=shape.embedding_scale if shape.family in FOLDED else 1.0,
            logits=shape.logit_scale if shape.family in FOLDED else 1.0,
            layers={name: x for name, x in every.items() if set(x) != {1.0}},
        )

    @classmethod
    def parse(cls, text: str, where: str) -> Form:
        """Return the form that a file says.

        Raises:
            ModelError: if it says nothing that can be understood.
        """
        try:
            plain: dict[str, Any] = checked(dict, parsed_json(text.encode()), KEY)
            layers: dict[str, Any] = checked(dict, plain.get("layers", {}), "layers")
            outer = {name: plain.get(name, 1.0) for name in ("embedding", "logits")}
            lists = [*layers.values(), list(outer.values())]
            if not all(isinstance(x, list) and all(map(_multiplies, x)) for x in lists):
                raise ValueError("its multipliers are no numbers, or such as no model has.")
            return cls(
                in_file=checked(bool, plain.get("in_file", False), "in_file"),
                layers={name: tuple(x) for name, x in layers.items()},
                **outer,
            )
        except (ValueError, UsageError) as error:
            raise ModelError(f"{where} is damaged: {error} Save or copy it again.") from error

    def written(self) -> dict[str, str]:
        """Return what a file says of it: nothing, where there is nothing to say."""
        if self == Form():
            return {}
        plain = {
            "in_file": self.in_file, "embedding": self.embedding, "logits": self.logits,
            "layers": {name: list(x) for name, x in self.layers.items()},
        }  # fmt: skip
        return {KEY: json.dumps(plain, sort_keys=True)}

    def at(self, name: str, layer: int) -> float:
        """Return a multiplier of a layer."""
        every = self.layers.get(name, ())
        return every[layer] if layer < len(every) else 1.0


def form_of(metadata: Mapping[str, str], config: Mapping[str, object], where: str) -> Form | None:
    """Return the form that an adapter's file says; None: that of a folder, however it multiplies.

    Older files say of it only over which model they were trained.

    Raises:
        ModelError: if it cannot be understood.
    """
    if KEY in metadata:
        return Form.parse(metadata[KEY], where)
    base = config.get("base_model_name_or_path")
    return Form(in_file=True) if isinstance(base, str) and names_file(base) else None


def brought_over(
    adapter: LoadedAdapter, form: Form | None, shape: ModelShape, where: str
) -> LoadedAdapter:
    """Return an adapter that was trained over one form of a model for the form that is here.

    Raises:
        ModelError: if it cannot be: its multipliers are not known, or a tensor does not say whether
            it has them.
    """
    if form is None and shape.in_file and shape.family in FOLDED:
        own = _of_projections(adapter, shape)
        if any(tensor.rescaled is not False for every in own.values() for tensor in every):
            raise ModelError(
                f"{where} was trained over a {shape.family} model whose multipliers are beside its "
                "weights, and does not say which they are. This file has them in its weights, so it "
                "would compute something else. Use it over the folder of the model (--model), or "
                "make a file of both: edgetune export ADAPTER --model FOLDER --to gguf."
            )
        return adapter
    if form is None or form.in_file == shape.in_file:
        return adapter
    if any(len(every) != shape.layers for every in form.layers.values()):
        raise ModelError(
            f"{where} is damaged: its multipliers are not those of {shape.layers} layers. Save or "
            "copy it again."
        )
    factors = dict(_factors(adapter, form, Form.of(shape), shape, where))
    tensors = {
        name: _times(x, *factors[name]) if name in factors else x
        for name, x in adapter.tensors.items()
    }
    return replace(adapter, tensors=tensors, base=None)


def _multiplies(value: object) -> bool:
    """Return whether something can be a multiplier: a finite number that is not 0."""
    return is_number(value) and value != 0


def _times(x: NDArray[np.float32], factor: Factor, added: float) -> NDArray[np.float32]:
    """Return rows of x times ``factor``, as if ``added`` were part of them."""
    rows = np.asarray(factor, np.float32)
    rows = rows.reshape(-1, *[1] * (x.ndim - 1)) if rows.ndim else rows
    changed: NDArray[np.float32] = (x + np.float32(added)) * rows - np.float32(added)
    return changed


def _factors(
    adapter: LoadedAdapter, old: Form, new: Form, shape: ModelShape, where: str
) -> Iterator[tuple[str, tuple[Factor, float]]]:
    """Yield the tensors that are others over the new form: times what, and the norms' offset."""
    own = _of_projections(adapter, shape)
    for module, layer, linear in _projections(shape):
        factor = _ratio(old, new, shape, layer, linear)
        if np.allclose(factor, 1.0, rtol=1e-6, atol=0):
            continue
        for tensor in own.get(module, ()):
            if tensor.rescaled is None:
                raise ModelError(
                    f"{where} has {tensor.name}, which cannot be brought over from another form of "
                    f"this {shape.family} model: multipliers are in its weights there and beside "
                    "them here, or the reverse. Use it over the model that it was trained on."
                )
            if tensor.rescaled:
                yield tensor.name, (factor, 0.0)
    for layer in range(shape.layers):
        yield from _query_norm(old.at(SCORES, layer) / new.at(SCORES, layer), shape, layer)
    yield from _matrices(adapter, old, new, shape, where)


def _projections(shape: ModelShape) -> Iterator[tuple[str, int, Linear]]:
    """Yield every projection of a model with its module and its layer."""
    for layer, block in enumerate(shape.blocks):
        for linear in block.linears:
            yield f"{shape.block(layer)}{linear.module}", layer, linear


def _of_projections(
    adapter: LoadedAdapter, shape: ModelShape
) -> dict[str, tuple[AdapterTensor, ...]]:
    """Return the adapter's tensors of projections by their modules."""
    modules = {module for module, *_ in _projections(shape)}
    found: dict[str, tuple[AdapterTensor, ...]] = {}
    for tensor in adapter.method.tensors(shape):
        module = tensor.module(modules)
        if module is not None:
            found[module] = (*found.get(module, ()), tensor)
    return found


def _ratio(old: Form, new: Form, shape: ModelShape, layer: int, linear: Linear) -> Factor:
    """Return what the outputs of a projection's weights are multiplied by."""
    block, mixer = shape.blocks[layer], shape.blocks[layer].recurrent
    ratio = old.at(linear.role, layer) / new.at(linear.role, layer)
    if linear.role == "scan_in" and isinstance(mixer, StateSpace):
        parts = [old.at(_part(i), layer) / new.at(_part(i), layer) for i in range(_PARTS)]
        counts = (mixer.values, mixer.values, mixer.keys, mixer.keys, mixer.heads)
        by_part: NDArray[np.float32] = np.repeat(np.array(parts, np.float32), counts)
        return (ratio * by_part).astype(np.float32)
    scores = old.at(SCORES, layer) / new.at(SCORES, layer)
    if linear.role not in ("q", "qkv") or "q" in block.norm_by_role or scores == 1.0:
        return ratio
    rows = np.full(linear.outputs, ratio, np.float32)
    rows[: block.queries] *= scores  # files have the queries of a fused projection first
    return rows


def _part(number: int) -> str:
    return f"scan_in.{number}"


def _query_norm(
    scores: float, shape: ModelShape, layer: int
) -> Iterator[tuple[str, tuple[Factor, float]]]:
    """Yield the norm of queries, whose weight makes up for another scale of scores."""
    norm = shape.blocks[layer].norm_by_role.get("q")
    if norm is None or norm.plain or isclose(scores, 1.0, rel_tol=1e-6):
        return
    module, offset = f"{shape.block(layer)}{norm.module}", (norm.kind or shape.norm).offset
    for part, added in (("weight", offset), ("bias", 0.0)):
        for name in (f"{module}.{part}", f"{module}.{PART}.{part}"):
            yield name, (scores, added)


def _matrices(
    adapter: LoadedAdapter, old: Form, new: Form, shape: ModelShape, where: str
) -> Iterator[tuple[str, tuple[Factor, float]]]:
    """Yield embedding and head, where they are trained whole."""
    embedding, head = old.embedding / new.embedding, old.logits / new.logits
    name = shape.embedding_tensor
    if name in adapter.tensors and shape.tied and not isclose(embedding, head, rel_tol=1e-6):
        raise ModelError(
            f"{where} has a trained embedding that is the head too, over another form of this "
            f"{shape.family} model, in which both are multiplied by other numbers. Use it over the "
            "model that it was trained on."
        )
    yield name, (embedding, 0.0)
    if not shape.tied:
        yield shape.head_tensor, (head, 0.0)


def _multipliers(block: BlockShape) -> Iterator[tuple[str, float]]:
    """Yield the multipliers of a block by name."""
    for linear in block.linears:
        yield linear.role, linear.scale
    if isinstance(block.recurrent, StateSpace):
        for number, value in enumerate(block.recurrent.multipliers):
            yield _part(number), value
    if block.attention is not None and block.attention.latent is None:
        scores = block.attention.scale * sqrt(block.head_dim)
        yield SCORES, 1.0 if isclose(scores, 1.0, rel_tol=1e-6) else scores
