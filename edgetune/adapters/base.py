"""What an adapter file is, and which formats there are; a method's format is one file beside this.

``adapter_config.json`` says what the adapter is, ``adapter_model.safetensors`` holds its tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters.modules import decoder_name, loaded_name
from edgetune.errors import ModelError, UsageError
from edgetune.escapes import short
from edgetune.methods import METHODS, Method, method_class
from edgetune.methods.lora import LowRank
from edgetune.model.weights import listing
from edgetune.shape import ModelShape

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

EDGETUNE: Final = "EDGETUNE"
"""What ``peft_type`` says of methods that PEFT does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """An adapter that was read: its method, its float32 tensors, the model it was trained on."""

    method: Method
    tensors: Mapping[str, NDArray[np.float32]]
    base: str | None
    unused: int = 0
    """Tensors of the file for parts of a wrapper that text does not reach; they are left out."""

    def evened(self, shape: ModelShape) -> LoadedAdapter:
        """Return the same adapter with one scale for all updates, as sessions compute them."""
        if not isinstance(self.method, LowRank):
            return self
        method, tensors = self.method.evened(shape, self.tensors)
        return replace(self, method=method, tensors=tensors)


ANYWHERE: Final = frozenset(
    {
        "peft_type", "base_model_name_or_path", "inference_mode", "revision", "auto_mapping",
        "peft_version",
    }
)  # fmt: skip
"""Fields of every config that say where a file came from."""


class AdapterFormat(ABC):
    """How one method is written in PEFT's layout."""

    prefix: ClassVar[str] = "base_model.model."
    """What the names in the file have before those of :mod:`edgetune.methods`."""

    def stored_name(self, name: str, shape: ModelShape) -> str:
        """Return what the file calls a tensor."""
        return f"{self.prefix}{loaded_name(shape, name)}"

    def own_name(self, stored: str, shape: ModelShape) -> str:
        """Return what :mod:`edgetune.methods` calls a tensor of the file."""
        return decoder_name(shape, stored.removeprefix(self.prefix))

    def stored_names(self, names: Collection[str], shape: ModelShape) -> dict[str, str]:
        """Return what the file calls each tensor of a whole adapter."""
        return {name: self.stored_name(name, shape) for name in names}

    def own_names(
        self, stored: Collection[str], config: Mapping[str, object], shape: ModelShape
    ) -> dict[str, str]:
        """Return what :mod:`edgetune.methods` calls each tensor of a file."""
        return {name: self.own_name(name, shape) for name in stored}

    def stored_values(self, name: str, values: NDArray[Any], shape: ModelShape) -> NDArray[Any]:
        """Return a tensor as the file has it."""
        return values

    def own_values(
        self,
        name: str,
        values: NDArray[np.float32],
        config: Mapping[str, object],
        shape: ModelShape,
    ) -> NDArray[np.float32]:
        """Return a tensor of a file as :mod:`edgetune.methods` has it."""
        return values

    def copies(self, names: Collection[str], shape: ModelShape) -> dict[str, str]:
        """Return what the file has besides these tensors, and which of them each is the same as."""
        return {}

    def left_out(self, config: Mapping[str, object], names: Collection[str]) -> tuple[str, ...]:
        """Return the constants that are not in the file, because the config says how to draw them."""
        return ()

    def drawn(
        self, config: Mapping[str, object], sizes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[np.float32]]:
        """Return what :meth:`left_out` names, which has these shapes."""
        return {}

    @abstractmethod
    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return the fields of ``adapter_config.json`` that the method decides."""

    @abstractmethod
    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> Method:
        """Return the method that a config and the names of its tensors describe.

        Raises:
            ModelError: naming every field and tensor that cannot be honoured.
        """


def adapter_format(kind: str) -> AdapterFormat:
    """Return the format of a method.

    Raises:
        UsageError: if the method cannot be written in PEFT's layout.
    """
    where = method_class(kind).format
    if where is None:
        known = ", ".join(name for name in METHODS if method_class(name).format is not None)
        raise UsageError(f"Unsupported method {kind!r} in PEFT's layout. Supported: {known}.")
    module, _, name = where.partition(":")
    found: AdapterFormat = getattr(import_module(module), name)()
    return found


def peft_kinds() -> dict[str, str]:
    """Return what a config calls a method, and the first kind whose format reads it."""
    kinds: dict[str, str] = {}
    for kind in METHODS:
        found = method_class(kind)
        if found.format is not None:
            kinds.setdefault(found.peft_type or EDGETUNE, kind)
    return kinds


def unsupported(
    config: Mapping[str, object],
    known: Collection[str],
    allowed: Mapping[str, tuple[object, ...]],
) -> Iterator[str]:
    """Name the fields that ask for something: an empty or false field asks for nothing."""
    for name, value in config.items():
        if value and name not in known and value not in allowed.get(name, ()):
            yield f"{name} is {short(value)}: not supported"


def check_shapes(
    where: str, method: Method, shape: ModelShape, found: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare tensors by name and shape with what a method has on a model.

    Raises:
        ModelError: naming what is missing, unknown or of another shape.
    """
    wanted = {tensor.name: tensor.shape for tensor in method.tensors(shape)}
    problems = [f"{name}: missing, expected {wanted[name]}" for name in wanted.keys() - found]
    problems += [f"{name}: not expected" for name in found.keys() - wanted]
    problems += [
        f"{name}: is {found[name]}, expected {wanted[name]}"
        for name in wanted.keys() & found
        if found[name] != wanted[name]
    ]
    if problems:
        raise ModelError(
            f"The tensors of {where} are not those of {method.kind} on this {shape.family} model; "
            f"is it the model that the adapter was trained on?\n  - {listing(sorted(problems))}"
        )
