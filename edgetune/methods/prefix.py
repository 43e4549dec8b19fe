"""Prefix tuning: trained keys and values before each layer's own (Li & Liang 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import ZEROS, Normal, Uniform
from edgetune.methods.prompt import NAME, too_long
from edgetune.network.ops import A, Attended
from edgetune.settings.spec import Interval, knob
from edgetune.shape import ModelShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.network.block import Block

DEFAULT_LENGTH = 20

_INSTEAD = "Use --method lora."

SPREAD = 0.02
"""Deviation of the first keys and values: small, so that the base's attention is hardly moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix(Method):
    """``prefix_length`` keys and values a layer, the output of a small network in training.

    The network (section 4.3) maps an embedding (length, width) through ``prefix_hidden`` tanh
    units to (length, all keys and values), width being that of a layer's keys; on disk only its output
    is left.
    """

    kind: ClassVar[str] = "prefix"
    attends: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    format: ClassVar[str] = "edgetune.adapters.prefix:PrefixFormat"
    peft_type: ClassVar[str] = "PREFIX_TUNING"
    rate_factor: ClassVar[float] = 2.0
    reads_summands: ClassVar[bool] = False

    prefix_length: int | None = knob(
        None,
        "Trained keys and values per layer (default: 20; 30 for mam).",
        interval=Interval(low=1),
    )
    reparameterize: bool = knob(True, "Train prefixes through a small network, dropped when saved.")
    prefix_hidden: int = knob(512, "Width of that network.", interval=Interval(low=1))

    @property
    def length(self) -> int:
        """The keys of a layer."""
        return DEFAULT_LENGTH if self.prefix_length is None else self.prefix_length

    def used(self) -> dict[str, Any]:
        """Return the settings with the length that holds."""
        return Method.used(self) | {"prefix_length": self.length}

    @property
    def positions(self) -> int:
        """The keys of a layer, which come before the first token."""
        return self.length

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return the network, or ``length`` times the numbers of all layers' keys and values."""
        width, numbers = max(block.keys for block in shape.kinds), end_of(shape, shape.layers - 1)
        if not self.reparameterize:
            size = (self.length, numbers)
            return (AdapterTensor(name=NAME, shape=size, initial=Normal(SPREAD)),)
        hidden, outputs = self.prefix_hidden, numbers
        return (
            AdapterTensor(name="prefix.embedding", shape=(self.length, width), initial=Normal(1.0)),
            AdapterTensor(
                name="prefix.inner.weight",
                shape=(hidden, width),
                initial=Uniform(1 / sqrt(width)),
            ),
            AdapterTensor(name="prefix.inner.bias", shape=(hidden,), initial=ZEROS),
            AdapterTensor(
                name="prefix.outer.weight",
                shape=(outputs, hidden),
                initial=Normal(SPREAD / sqrt(hidden)),
            ),
            AdapterTensor(name="prefix.outer.bias", shape=(outputs,), initial=ZEROS),
        )

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse a prefix that leaves too few positions, or layers that it cannot be told for."""
        heads = {(x.kv_heads, x.head_dim) for x in shape.kinds if x.attention is not None}
        reasons = too_long(shape, context, self.length, "--prefix-length")
        if shape.lenders:
            reasons.append(
                f"Layers of this {shape.family} model read the keys and values of others, and have "
                f"no place for a prefix of their own. {_INSTEAD}"
            )
        elif any(rule.latent is not None for rule in shape.attention):
            reasons.append(
                f"The keys and values of this {shape.family} model are made of latents, which PEFT "
                f"keeps in their place: a prefix of keys and values cannot be told to it. {_INSTEAD}"
            )
        elif len(heads) > 1:
            reasons.append(
                f"The layers of this {shape.family} model have keys of different sizes, and PEFT's "
                f"prefixes have one size for all layers. {_INSTEAD}"
            )
        return reasons

    def attend(self, block: Block[A], own: Adapted[A], attended: Attended[A]) -> A:
        """Return attention to the prefix and the tokens at once."""
        heads, end = block.own.kv_heads, end_of(block.shape, block.layer or 0)
        flat = self._values(block, own, slice(end - 2 * block.own.keys, end))
        return block.ops.attend(attended, before=block.ops.keys_values(flat, heads))

    def _values(self, block: Block[A], own: Adapted[A], span: slice) -> A:
        """Return a layer's part (length, 2 * width) of the numbers that a prefix consists of."""
        ops, tensors = block.ops, own.tensors
        if NAME in tensors:
            return ops.some_columns(tensors[NAME], span)
        inner = ops.float32_linear(
            tensors["prefix.embedding"],
            tensors["prefix.inner.weight"],
            tensors["prefix.inner.bias"],
        )
        outer = (tensors[f"prefix.outer.{part}"] for part in ("weight", "bias"))
        weight, bias = (ops.some_rows(part, span) for part in outer)
        return ops.float32_linear(ops.tanh(inner), weight, bias)

    def everywhere(self, name: str) -> bool:
        """Return whether a tensor is the prefix's: one holds the numbers of all layers."""
        return name == NAME or name.startswith("prefix.")

    def on_disk(self) -> Prefix:
        """Return the keys and values alone."""
        return replace(self, reparameterize=False)

    def fold(self, shape: ModelShape, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return the network's output."""
        if not self.reparameterize:
            return dict(tensors)
        import numpy as np

        inner = tensors["prefix.embedding"] @ tensors["prefix.inner.weight"].T
        inner = np.tanh(inner + tensors["prefix.inner.bias"])
        outer = inner @ tensors["prefix.outer.weight"].T + tensors["prefix.outer.bias"]
        return {NAME: outer.astype(np.float32)}


def end_of(shape: ModelShape, layer: int) -> int:
    """Return where the numbers of a layer end among those of all layers' keys and values."""
    return sum(2 * block.keys for block in shape.blocks[: layer + 1])
