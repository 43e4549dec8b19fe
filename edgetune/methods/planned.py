"""A method on the blocks of a model that is only planned: which blocks are alike, and one of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgetune.methods.adapted import Adapted, Self
from edgetune.methods.base import AdapterTensor, Method
from edgetune.network.ops import A, Dropout
from edgetune.shape import ModelShape


class PlannedMethod(Adapted[A]):
    """A method of which nothing is drawn: masks have any seed, and ranks are whole."""

    training = False

    def dropout(self, fraction: float, layer: int | None, role: str) -> Dropout | None:
        """Return what is dropped in training: a mask of any seed."""
        del layer, role
        return Dropout(fraction, 0) if self.training and fraction else None

    def of_pass(self: Self, tensors: Mapping[str, A], *, training: bool) -> Self:
        """Return the same method for one pass of the block that has these tensors."""
        other = copy.copy(self)
        other.tensors, other.kept = tensors, self.kept.anew()
        other.training = training  # type: ignore[misc]  # nothing is drawn by it
        return other


@dataclass(frozen=True, slots=True)
class BlockKind:
    """Blocks that take the same: ``layer`` is one of them.

    ``alike`` is the model's first layer with such a block.

    ``goes_on``: whether the gradient of the block's input is wanted; ``to_lender``: whether those
    of keys and values are that it reads of another block, and ``gives_first``: whether it is the
    first, on the way back, to give some. ``adds``: whether a later block has given gradients of
    tensors that all blocks share.
    """

    layer: int = field(compare=False)
    tensors: tuple[AdapterTensor, ...] = field(compare=False)
    alike: int
    sizes: tuple[tuple[str, tuple[int, ...], bool], ...]
    goes_on: bool
    to_lender: bool
    gives_first: bool
    adds: bool


def kinds(method: Method, shape: ModelShape, tensors: Sequence[AdapterTensor]) -> list[BlockKind]:
    """Return the kind of each block; those that are alike are equal."""
    by_layer = _by_layer(method, shape, tensors)
    first, found = method.first_layer(shape), []
    for layer, own in enumerate(by_layer):
        prefix = shape.block(layer)
        sizes = tuple((each.name.removeprefix(prefix), each.shape, each.trained) for each in own)
        goes_on = method.trains_input or layer > first
        source = shape.source(layer)
        to_lender = source is not None and source >= first
        gives_first = source is not None and shape.last_reader(source) == layer
        shared = any(each.trained and method.everywhere(each.name) for each in own)
        adds = shared and layer < shape.layers - 1
        found.append(
            BlockKind(
                layer, tuple(own), shape.alike[layer], sizes, goes_on, to_lender, gives_first, adds
            )
        )
    return found


def _by_layer(
    method: Method, shape: ModelShape, tensors: Sequence[AdapterTensor]
) -> list[list[AdapterTensor]]:
    prefixes: Mapping[str, int] = {shape.block(layer): layer for layer in range(shape.layers)}
    size = len(shape.block_prefix.split("{}")[0])
    end = shape.block_prefix.split("{}")[1]
    found: list[list[AdapterTensor]] = [[] for _ in range(shape.layers)]
    for tensor in tensors:
        if method.everywhere(tensor.name):
            for own in found:
                own.append(tensor)
            continue
        number = tensor.name[size:].split(end, 1)[0]
        layer = prefixes.get(f"{tensor.name[:size]}{number}{end}")
        if layer is not None:
            found[layer].append(tensor)
    return found
