"""The tensors of an adaptation: where they start, what is saved of them, and back again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from edgetune.backend import Tensors
from edgetune.errors import ModelError
from edgetune.methods import Method, initial_value
from edgetune.methods.adapted import Adapted
from edgetune.shape import BlockShape, ModelShape
from edgetune_torch.arrays import array_of
from edgetune_torch.decoder import Decoder
from edgetune_torch.generate import keys_values
from edgetune_torch.weights import BlockWeights

ROWS = 2048
"""Rows of an embedding that are turned into numbers at a time."""

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
        matrix = self._matrix(name)
        if matrix is not None:
            return matrix
        found = self._outer(name)
        return _numbers(self._inner(name) if found is None else found)

    def rows(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Return some rows of the embedding."""
        return _numbers(
            self.weights.embedding.rows(torch.tensor(indices, device=self.weights.device))
        )

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the tokens of a text; ``special`` begins them with BOS, if the model wants it."""
        from edgetune.data import load_tokenizer

        return load_tokenizer(self.folder).encode(text, special)

    def keys_values(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return what its cache holds of tokens (P) at the first positions, (P, numbers)."""
        return keys_values(self.decoder, tokens)

    def _inner(self, name: str) -> Tensor:
        layers = range(self.shape.layers)
        layer = next(i for i in layers if name.startswith(self.shape.block(i)))
        rest = name.removeprefix(self.shape.block(layer))
        for _ in self.weights.blocks.walk([layer]):
            found = _of_block(self.shape.blocks[layer], self.weights.blocks[layer], rest).clone()
        return found

    def _matrix(self, name: str) -> NDArray[np.float32] | None:
        """Return embedding or head (V, D) by name, read some rows at a time: they are large."""
        shape = self.shape
        if name not in {shape.embedding_tensor, shape.head_tensor}:
            return None
        out = np.empty((shape.vocabulary, shape.hidden_size), np.float32)
        if name == shape.head_tensor and not shape.tied:
            for span, part in self.weights.head.slices(torch.float32):
                out[span] = part.cpu().numpy()
            return out
        for at in range(0, len(out), ROWS):
            out[at : at + ROWS] = self.rows(range(at, min(at + ROWS, len(out))))
        return out

    def _outer(self, name: str) -> Tensor | None:
        final = self.shape.final_norm.module
        if name == f"{final}.weight":
            return self.weights.final_norm
        return self.weights.final_norm_bias if name == f"{final}.bias" else None


def _of_block(shape: BlockShape, block: BlockWeights, name: str) -> Tensor:
    """Return a tensor by its name inside a block."""
    module, _, part = name.rpartition(".")
    for linear in shape.linears:
        if linear.module == module:
            if part == "bias":
                return block.biases[linear.role]
            return block.matrices[linear.role].dense(torch.float32)
    for tensor in shape.mixer_tensors:
        if tensor.name == name:
            return block.mixer[tensor.role]
    role = next(norm.role for norm in shape.norms if norm.module == module)
    return (block.norms if part == "weight" else block.norm_biases)[role]


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    """Return a copy: what is trained must not share the base's memory."""
    return np.array(tensor.float().cpu().numpy())


def new_parameters(
    method: Method, shape: ModelShape, base: LoadedBase, seed: int, device: torch.device
) -> dict[str, Parameter]:
    """Return a method's tensors at their start; constants want no gradient."""
    return {
        tensor.name: Parameter(
            torch.from_numpy(initial_value(tensor, seed, base)).to(device),
            requires_grad=tensor.trained,
        )
        for tensor in method.tensors(shape)
    }


def loaded_parameters(
    method: Method, shape: ModelShape, tensors: Tensors, device: torch.device
) -> dict[str, Parameter]:
    """Return saved tensors to compute with, not to train.

    Raises:
        ModelError: naming every tensor that is missing, unknown or of another shape.
    """
    _check({tensor.name: tensor.shape for tensor in method.tensors(shape)}, tensors)
    return {
        name: Parameter(torch.tensor(np.asarray(array), device=device), requires_grad=False)
        for name, array in tensors.items()
    }


def saved_tensors(method: Adapted[Tensor], *, copied: bool = True) -> Tensors:
    """Return what belongs into the adapter's file."""
    return method.spec.fold(method.shape, _arrays(method.tensors, copied=copied))


def unsaved_tensors(method: Adapted[Tensor], *, copied: bool = True) -> Tensors:
    """Return what training needs besides, where more is trained than saved."""
    if not method.spec.folds(method.shape):
        return {}
    arrays = _arrays(method.tensors, copied=copied)
    return {f"{TRAINED}{name}": array for name, array in arrays.items()}


def take_over(method: Adapted[Tensor], adapter: Tensors, unsaved: Tensors) -> None:
    """Set a method's tensors to those that :func:`saved_tensors` or both functions returned.

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
        _check({name: tuple(x.shape) for name, x in method.tensors.items()}, adapter)
    with torch.no_grad():
        for name, parameter in method.tensors.items():
            parameter.copy_(torch.from_numpy(np.array(adapter[name])))


def _arrays(
    parameters: Mapping[str, Tensor], *, copied: bool = True
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
