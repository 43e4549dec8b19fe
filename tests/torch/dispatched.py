"""What torch dispatches: operations, FLOP of products, and bytes that the others read and write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm": 0, "addmm": 1, "addmm_": 1, "bmm": 0, "baddbmm": 1, "baddbmm_": 1}
"""Products, and which argument is the first of their two matrices."""

OVERWRITING = {"copy_", "zero_", "fill_"}
"""Operations that do not read what they write to."""


class Dispatched(TorchDispatchMode):
    """Counts what is dispatched while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.flops = 0
        self.moved = 0
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        self.launches += 1
        self.names[name] += 1
        if name in PRODUCTS:
            first, second = args[PRODUCTS[name]], args[PRODUCTS[name] + 1]
            self.flops += 2 * first.numel() * second.shape[-1]
        elif not _only_looks(func, name):
            read = args[1:] if name in OVERWRITING else args
            self.moved += sum(map(_bytes, (*_tensors(read), *_tensors(found))))
        return found


def _only_looks(func: Any, name: str) -> bool:
    """Return whether an operation returns a view, or memory that nothing was written to."""
    returned = func._schema.returns
    alias = returned[0].alias_info if returned else None
    return (alias is not None and not alias.is_write) or name.startswith(("empty", "new_empty"))


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            yield from _tensors(each)


def _bytes(x: Tensor) -> int:
    """Return the bytes of a tensor; what is repeated counts once."""
    sizes = zip(x.shape, x.stride(), strict=True)
    return prod(size for size, stride in sizes if stride) * x.element_size()
