"""The tensors of an adaptation: where they start, what is saved of them, and back again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.backend import Tensors
from edgetune.errors import ModelError
from edgetune.methods import Method, initial_value
from edgetune.methods.adapted import Adapted
from edgetune.shape import BlockShape, ModelShape
from edgetune_mlx.arrays import array_of
from edgetune_mlx.decoder import Decoder
from edgetune_mlx.generate import keys_values
from edgetune_mlx.load import BlockWeights

TRAINED = "trained."
"""What the names of tensors begin with that are trained but not part of the adapter."""


class LoadedBase:
    """A loaded model as :class:`edgetune.methods.initial.Base` wants it."""

    def __init__(self, decoder: Decoder, folder: Path) -> None:
        """Read from a decoder's weights, and compute with it; ``folder`` has the tokenizer."""
        self.decoder = decoder
        self.shape = decoder.shape
        self.weights = decoder.weights
        self.folder = folder

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding."""
        return self.shape.vocabulary

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as it is used; a projection as (outputs, inputs)."""
        if name == self.shape.embedding_tensor:
            return _numbers(self.weights.embedding.dense(mx.float32))
        if name == self.shape.head_tensor:
            return _numbers(self.weights.head.dense(mx.float32))
        found = self._outer(name)
        return _numbers(self._inner(name) if found is None else found)

    def rows(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Return some rows of the embedding."""
        return _numbers(self.weights.embedding.rows(mx.array(list(indices)), mx.float32))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the tokens of a text; ``special`` begins them with BOS, if the model wants it."""
        from edgetune.data import load_tokenizer

        return load_tokenizer(self.folder).encode(text, special)

    def keys_values(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return what its cache holds of tokens (P) at the first positions, (P, numbers)."""
        return keys_values(self.decoder, tokens)

    def _inner(self, name: str) -> mx.array:
        layers = range(self.shape.layers)
        layer = next(i for i in layers if name.startswith(self.shape.block(i)))
        rest = name.removeprefix(self.shape.block(layer))
        return _of_block(self.shape.blocks[layer], self.weights.blocks[layer], rest)

    def _outer(self, name: str) -> mx.array | None:
        final = self.shape.final_norm.module
        if name == f"{final}.weight":
            return self.weights.final_norm
        return self.weights.final_norm_bias if name == f"{final}.bias" else None


def new_parameters(
    method: Method, shape: ModelShape, base: LoadedBase, seed: int
) -> dict[str, mx.array]:
    """Return a method's tensors at their start."""
    return {
        tensor.name: mx.array(initial_value(tensor, seed, base)) for tensor in method.tensors(shape)
    }


def loaded_parameters(method: Method, shape: ModelShape, tensors: Tensors) -> dict[str, mx.array]:
    """Return saved tensors to compute with.

    Raises:
        ModelError: naming every tensor that is missing, unknown or of another shape.
    """
    _check({tensor.name: tensor.shape for tensor in method.tensors(shape)}, tensors)
    return {name: mx.array(np.asarray(array)) for name, array in tensors.items()}


def saved_tensors(method: Adapted[mx.array], *, copied: bool = True) -> Tensors:
    """Return what belongs into the adapter's file."""
    return method.spec.fold(method.shape, _arrays(method.tensors, copied=copied))


def unsaved_tensors(method: Adapted[mx.array], *, copied: bool = True) -> Tensors:
    """Return what training needs besides, where more is trained than saved."""
    if not method.spec.folds(method.shape):
        return {}
    arrays = _arrays(method.tensors, copied=copied)
    return {f"{TRAINED}{name}": array for name, array in arrays.items()}


def taken_over(
    method: Adapted[mx.array], adapter: Tensors, unsaved: Tensors
) -> dict[str, mx.array]:
    """Return a method's tensors from what :func:`saved_tensors` or both functions returned.

    Raises:
        ModelError: naming every tensor that is missing, unknown or of another shape.
    """
    written = {t.name: t.shape for t in method.spec.on_disk().tensors(method.shape)}
    _check(written, adapter)
    if method.spec.folds(method.shape):
        if not unsaved:
            raise ModelError(
                f"What this {method.spec.kind} adapter was trained through is not in its file, so "
                "that it can be used and not trained on: open it with the method of the file."
            )
        adapter = {name.removeprefix(TRAINED): array for name, array in unsaved.items()}
        _check({name: x.shape for name, x in method.tensors.items()}, adapter)
    return {
        name: mx.array(np.asarray(adapter[name], np.float32)).reshape(x.shape)
        for name, x in method.tensors.items()
    }


def _of_block(shape: BlockShape, block: BlockWeights, name: str) -> mx.array:
    """Return a tensor by its name inside a block."""
    module, _, part = name.rpartition(".")
    for linear in shape.linears:
        if linear.module == module:
            if part == "bias":
                return block.biases[linear.role]
            return block.matrices[linear.role].dense(mx.float32)
    for tensor in shape.mixer_tensors:
        if tensor.name == name:
            return block.mixer[tensor.role]
    role = next(norm.role for norm in shape.norms if norm.module == module)
    return (block.norms if part == "weight" else block.norm_biases)[role]


def _numbers(tensor: mx.array) -> NDArray[np.float32]:
    return np.array(tensor.astype(mx.float32))


def _arrays(
    parameters: Mapping[str, mx.array], *, copied: bool = True
) -> dict[str, NDArray[np.float32]]:
    return {name: array_of(value, copied=copied) for name, value in parameters.items()}


def _check(wanted: Mapping[str, tuple[int, ...]], found: Tensors) -> None:
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in wanted]
    wrong += [
        f"{name} is {found[name].shape}, expected {size}"
        for name, size in wanted.items()
        if name in found and found[name].shape != size
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ModelError(f"The adapter does not fit the plan: {'; '.join(wrong[:8])}{more}.")
