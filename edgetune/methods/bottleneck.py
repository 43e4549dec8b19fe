"""Bottleneck adapters: small networks beside or behind the halves of a block.

Series: ``h <- h + s f(h W_down) W_up`` after attention and FFN (Houlsby et al. 2019) or after the
FFN alone (Pfeiffer et al. 2021). Parallel: the FFN's normalised input goes in (He et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import ZEROS, Copy, Uniform
from edgetune.methods.knobs import layers_knob
from edgetune.methods.targets import last_blocks, norms
from edgetune.methods.trained import trained_norm
from edgetune.network.adaptation import Sublayer
from edgetune.network.ops import A
from edgetune.settings.spec import Interval, knob
from edgetune.shape import ModelShape

if TYPE_CHECKING:
    from edgetune.methods.adapted import Adapted
    from edgetune.network.block import Block

DEFAULT_WIDTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck(Method):
    """Adapters of width ``bottleneck``; W_down is (width, hidden), W_up (hidden, width)."""

    kind: ClassVar[str] = "adapter"
    mergeable: ClassVar[bool] = False
    format: ClassVar[str] = "edgetune.adapters.native:TypedFormat"

    adapter_kind: Literal["series", "pfeiffer", "parallel"] = knob(
        "series", "Where adapters sit: after both sublayers, after the FFN, beside the FFN."
    )
    bottleneck: int | None = knob(
        None, "Width of an adapter (default: 64; 512 for mam).", interval=Interval(low=1)
    )
    reduction: float | None = knob(
        None,
        "Hidden size divided by adapter width, instead of --bottleneck.",
        interval=Interval(low=1),
    )
    adapter_activation: Literal["relu", "gelu", "silu"] = knob(
        "relu", "Activation inside an adapter."
    )
    adapter_scale: float | None = knob(
        None,
        "What an adapter's output is multiplied by (default: 4 if parallel, else 1).",
        interval=Interval(above=0),
    )
    train_norms: bool = knob(False, "Train the norms of adapted blocks too.")
    layers: int | None = layers_knob()

    @property
    def scale(self) -> float:
        """What an adapter's output is multiplied by."""
        if self.adapter_scale is not None:
            return self.adapter_scale
        return 4.0 if self.adapter_kind == "parallel" else 1.0

    def used(self) -> dict[str, Any]:
        """Return the settings with the width and the scale that hold."""
        width = DEFAULT_WIDTH if self.reduction is None else None
        return Method.used(self) | {
            "bottleneck": self.bottleneck or width,
            "adapter_scale": self.scale,
        }

    @property
    def sublayers(self) -> tuple[Sublayer, ...]:
        """The halves of a block that have an adapter."""
        return ("attention", "mlp") if self.adapter_kind == "series" else ("mlp",)

    def width(self, shape: ModelShape) -> int:
        """Return the width of an adapter."""
        if self.bottleneck is not None:
            return self.bottleneck
        if self.reduction is not None:
            return max(1, int(shape.hidden_size / self.reduction))
        return DEFAULT_WIDTH

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return for each adapter ``2 * hidden * width + width + hidden`` parameters."""
        blocks = last_blocks(shape, self.layers)
        adapters = [
            tensor
            for layer in blocks
            for which in self.sublayers
            if has(shape, layer, which)
            for tensor in self._adapter(shape, adapter_name(shape, layer, which))
        ]
        return (*adapters, *self._norms(shape))

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse blocks none of which has a half for an adapter."""
        blocks = last_blocks(shape, self.layers)
        if any(has(shape, layer, which) for layer in blocks for which in self.sublayers):
            return []
        reason = (
            f"Adapters stand at MLPs, and the blocks of --layers {self.layers} in this {shape.family} "
            "model have none: take more layers, or --method lora."
        )
        return [reason]

    def sublayer(self, block: Block[A], own: Adapted[A], which: Sublayer, x: A, out: A) -> A:
        """Return the half's output with that of its adapter, if it has one."""
        ops, name = block.ops, adapter_name(block.shape, block.layer or 0, which)
        if f"{name}.down.weight" not in own.tensors:
            return out
        source = x if self.adapter_kind == "parallel" else out
        inner = ops.activation(_affine(block, own, source, f"{name}.down"), self.adapter_activation)
        return ops.add(out, ops.scaled(_affine(block, own, inner, f"{name}.up"), self.scale))

    def norm(self, block: Block[A], own: Adapted[A], role: str, x: A) -> A:
        """Return x normalised, by the trained copy if there is one."""
        return trained_norm(block, own, role, x)

    def _adapter(self, shape: ModelShape, name: str) -> tuple[AdapterTensor, ...]:
        hidden, width = shape.hidden_size, self.width(shape)
        bound = Uniform(1 / sqrt(hidden))
        return (
            AdapterTensor(name=f"{name}.down.weight", shape=(width, hidden), initial=bound),
            AdapterTensor(name=f"{name}.down.bias", shape=(width,), initial=ZEROS),
            AdapterTensor(name=f"{name}.up.weight", shape=(hidden, width), initial=ZEROS),
            AdapterTensor(name=f"{name}.up.bias", shape=(hidden,), initial=ZEROS),
        )

    def _norms(self, shape: ModelShape) -> Iterator[AdapterTensor]:
        if not self.train_norms:
            return
        for module, norm in norms(shape, self.layers, final=False):
            for part in ("weight", "bias") if norm.bias else ("weight",):
                name = f"{module}.{part}"
                yield AdapterTensor(name=name, shape=(norm.size,), initial=Copy(name))


def _affine(block: Block[A], own: Adapted[A], x: A, name: str) -> A:
    y = block.ops.trained_linear(x, own.tensors[f"{name}.weight"])
    return block.ops.add_bias(y, own.tensors[f"{name}.bias"])


def has(shape: ModelShape, layer: int, which: Sublayer) -> bool:
    """Return whether a block has a half: some have one alone."""
    block = shape.blocks[layer]
    return block.feeds if which == "mlp" else block.mixer is not None


def adapter_name(shape: ModelShape, layer: int, which: Sublayer) -> str:
    """Return the name that an adapter's tensors begin with."""
    return f"{shape.block(layer)}{which}_adapter"
