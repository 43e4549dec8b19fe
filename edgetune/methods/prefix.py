"""Prefix tuning: trained keys and values before each layer's own (Li & Liang 2021).

They start from those that the base computes of a text, or are trained through a small network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgetune.errors import UsageError
from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import ZEROS, Initial, KeysValues, Normal, Uniform
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
"""Deviation of keys and values that start from noise: small, so that attention is hardly moved."""

TEXT = (
    "Read the request below and answer with exactly what it asks for, in the form that it wants. "
    "Say nothing before the answer and nothing after it. "
)
"""What prefixes start from if no text is given: an instruction for any task; its first sentence
has as many tokens as a prefix."""

NETWORK_FACTOR = 2.0
"""The usual learning rate of the network, as a multiple of LoRA's."""

Start = Literal["text", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix(Method):
    """``prefix_length`` keys and values a layer, trained directly from those of a text.

    With ``reparameterize`` they are the output of a small network in training (section 4.3), which
    maps an embedding (length, width) through ``prefix_hidden`` tanh units to (length, all keys and
    values), width being that of a layer's keys; on disk only its output is left.
    """

    kind: ClassVar[str] = "prefix"
    attends: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    format: ClassVar[str] = "edgetune.adapters.prefix:PrefixFormat"
    peft_type: ClassVar[str] = "PREFIX_TUNING"
    rate_factor: ClassVar[float] = 15.0  # five learns half as fast, see docs/methods.md
    reads_summands: ClassVar[bool] = False

    prefix_length: int | None = knob(
        None,
        "Trained keys and values per layer (default: 20; 30 for mam).",
        interval=Interval(low=1),
    )
    prefix_initial: Start | None = knob(
        None,
        "What prefixes start from: the base's keys and values of --prefix-text, or noise (default: "
        "text; random with --reparameterize).",
    )
    prefix_text: str | None = knob(
        None, "The text that prefixes start from (default: a neutral instruction)."
    )
    reparameterize: bool = knob(
        False, "Train prefixes through a small network, dropped when saved."
    )
    prefix_hidden: int = knob(512, "Width of that network.", interval=Interval(low=1))

    def __post_init__(self) -> None:
        """Refuse a start that the network has not, or a text that nothing reads."""
        Method.__post_init__(self)
        if self.reparameterize and self.prefix_initial == "text":
            raise UsageError(
                "--reparameterize trains a network, which starts from noise: it has no "
                "--prefix-initial text. Leave out one of both."
            )
        if self.prefix_text is None:
            return
        if self.start != "text" or not self.prefix_text.strip():
            raise UsageError(
                "--prefix-text is what prefixes start from with --prefix-initial text, which is the "
                f"default without --reparameterize. Found --prefix-initial {self.start}, "
                f"--prefix-text {self.prefix_text!r}."
            )

    @property
    def length(self) -> int:
        """The keys of a layer."""
        return DEFAULT_LENGTH if self.prefix_length is None else self.prefix_length

    @property
    def start(self) -> Start:
        """What the keys and values start from."""
        default: Start = "random" if self.reparameterize else "text"
        return self.prefix_initial or default

    @property
    def usual_factor(self) -> float:
        """That of keys and values, or of the network that they are the output of."""
        return NETWORK_FACTOR if self.reparameterize else self.rate_factor

    def used(self) -> dict[str, Any]:
        """Return the settings with the length and the start that hold."""
        return Method.used(self) | {"prefix_length": self.length, "prefix_initial": self.start}

    @property
    def positions(self) -> int:
        """The keys of a layer, which come before the first token."""
        return self.length

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return the network, or ``length`` times the numbers of all layers' keys and values."""
        width, numbers = max(block.keys for block in shape.kinds), end_of(shape, shape.layers - 1)
        if not self.reparameterize:
            size = (self.length, numbers)
            return (AdapterTensor(name=NAME, shape=size, initial=self._initial),)
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

    @property
    def _initial(self) -> Initial:
        return KeysValues(self.prefix_text or TEXT) if self.start == "text" else Normal(SPREAD)

    def everywhere(self, name: str) -> bool:
        """Return whether a tensor is the prefix's: one holds the numbers of all layers."""
        return name == NAME or name.startswith("prefix.")

    def on_disk(self) -> Prefix:
        """Return the keys and values alone, which start from nothing."""
        return replace(self, reparameterize=False, prefix_initial="random", prefix_text=None)

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
