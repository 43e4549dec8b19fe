"""Values that are only their size, and the tape on which operations leave their way back.

A value's bytes are counted from the moment it is made until Python lets go of the last name for
it, as a tensor's are. The backward pass follows torch's autograd: nodes in reverse order, the
gradients that came into a node end with it, then what it saved does, then what it made moves on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Literal

from edgetune.memory.ledger import Ledger

_KEYS = count()


class Storage:
    """Bytes that are live until nothing refers to them."""

    __slots__ = ("_ledger", "nbytes")

    def __init__(self, ledger: Ledger, nbytes: int) -> None:
        """Count the bytes from now on."""
        self._ledger = ledger
        self.nbytes = ledger.alloc(nbytes)

    def __del__(self) -> None:
        """Count them no more."""
        self._ledger.free(self.nbytes)


@dataclass(frozen=True, slots=True, eq=False)
class Sized:
    """A tensor as far as memory sees it: its shape, bytes a number, and where its bytes are.

    ``key`` names the value whose gradient its gradient is: views share it.
    """

    shape: tuple[int, ...]
    width: int
    storage: Storage | None
    """None: bytes that are counted elsewhere."""
    key: int
    needs: bool
    """Whether its gradient is wanted."""
    heads_apart: bool = False
    """(B, heads, S, h) in that order in memory, so that heads are brought together by a copy."""
    rows_apart: bool = False
    """Rows do not follow one another in memory, so that they become one matrix by a copy."""

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a copy."""
        return self.numbers * self.width

    def view(self, *shape: int, heads_apart: bool = False) -> Sized:
        """Return the same bytes in another shape."""
        return Sized(
            shape, self.width, self.storage, self.key, self.needs, heads_apart, self.rows_apart
        )

    def part(self, shape: tuple[int, ...], **layout: bool) -> Sized:
        """Return a view that has a gradient of its own."""
        return Sized(shape, self.width, self.storage, next(_KEYS), self.needs, **layout)


def outside(shape: tuple[int, ...], width: int, *, needs: bool = False) -> Sized:
    """Return a value whose bytes are counted elsewhere: an input, a weight, a trained tensor."""
    return Sized(shape, width, None, next(_KEYS), needs)


Order = Literal["heads", "channels", "rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Strewn:
    """A gradient whose numbers lie in another order, so that it becomes a matrix by a copy.

    What comes first may be the heads, or the channels; or rows do not follow one another.
    """

    storage: Storage | None
    first: Order


Gradient = Storage | Strewn | None
"""None: bytes that are counted elsewhere; gradients that are not there are not passed."""

Back = Callable[[list[Gradient]], Sequence[Gradient]]
"""From the gradients of a node's outputs to those of its inputs; it may let go of the former."""


@dataclass(slots=True)
class Node:
    """An operation on the tape: for each input that wants a gradient its key and bytes."""

    inputs: tuple[tuple[int, int] | None, ...]
    outs: tuple[int, ...]
    saved: tuple[Storage | None, ...]
    back: Back


class Tape:
    """The operations of a forward pass with gradients, and the way back over them."""

    def __init__(self, ledger: Ledger) -> None:
        """Begin with nothing on it."""
        self.ledger = ledger
        self.nodes: list[Node] = []
        self.watched: dict[int, list[Callable[[], None]]] = {}
        """What is called when the gradient of a value is whole, by the value's key."""

    def made(
        self,
        shape: tuple[int, ...],
        width: int,
        inputs: Sequence[Sized],
        back: Back,
        *,
        storage: Storage | None = None,
        saved: Sequence[Sized | Storage | None] = (),
        heads_apart: bool = False,
    ) -> Sized:
        """Return an operation's output, which is on the tape if an input wants a gradient.

        It is allocated now, unless its ``storage`` is there already.
        """
        needs = any(value.needs for value in inputs)
        if storage is None:
            storage = Storage(self.ledger, prod(shape) * width)
        out = Sized(shape, width, storage, next(_KEYS), needs, heads_apart)
        if needs:
            self.record(inputs, (out,), saved, back)
        return out

    def record(
        self,
        inputs: Sequence[Sized],
        outs: Sequence[Sized],
        saved: Sequence[Sized | Storage | None],
        back: Back,
    ) -> None:
        """Put an operation on the tape."""
        self.nodes.append(
            Node(
                tuple((value.key, value.nbytes) if value.needs else None for value in inputs),
                tuple(out.key for out in outs),
                tuple(each.storage if isinstance(each, Sized) else each for each in saved),
                back,
            )
        )

    def backward(
        self, grads: dict[int, Gradient], leaves: frozenset[int] = frozenset()
    ) -> dict[int, Gradient]:
        """Go back from the values whose gradients are there; return those that are left.

        The gradients of ``leaves`` are added to bytes that are there already, each when it is
        whole.
        """
        uses = self._uses(set(grads))
        while self.nodes:
            node = self.nodes.pop()
            if not any(key in grads for key in node.outs):
                continue
            for key in node.outs:
                for called in self.watched.get(key, ()):
                    called()
            arrived = [grads.pop(key, None) for key in node.outs]
            made = list(node.back(arrived))
            arrived.clear()
            inputs = node.inputs
            del node  # and what it saved
            made.reverse()
            for place in inputs:
                grad = made.pop()
                if place is not None:
                    key = place[0]
                    self._add(grads, *place, grad)
                    uses[key] -= 1
                    if key in leaves and not uses[key]:
                        del grads[key]
                del grad
        return grads

    def _uses(self, reached: set[int]) -> Counter[int]:
        """Return how many gradients each value will be given."""
        uses: Counter[int] = Counter()
        for node in reversed(self.nodes):
            if not reached.isdisjoint(node.outs):
                keys = [place[0] for place in node.inputs if place is not None]
                uses.update(keys)
                reached.update(keys)
        return uses

    def _add(self, grads: dict[int, Gradient], key: int, nbytes: int, grad: Gradient) -> None:
        """Add a gradient to what there is of a value: autograd makes a new tensor of both."""
        if key in grads:
            grads[key] = like(grads[key], Storage(self.ledger, nbytes))
        else:
            grads[key] = grad


def like(grad: Gradient, storage: Storage) -> Gradient:
    """Return a gradient in new bytes, its heads and positions in the order of another."""
    if isinstance(grad, Strewn) and grad.first != "rows":
        return Strewn(storage, grad.first)
    return storage
