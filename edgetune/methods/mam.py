"""MAM adapter: a short prefix at attention and a parallel adapter at the FFN (He et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.bottleneck import Bottleneck
from edgetune.methods.knobs import shared_knob
from edgetune.methods.prefix import Prefix, Start
from edgetune.network.adaptation import Sublayer
from edgetune.network.ops import A, Attended
from edgetune.shape import ModelShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.network.block import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Mam(Method):
    """Composes :class:`Prefix` and a parallel :class:`Bottleneck`; sizes as in section 4.6."""

    kind: ClassVar[str] = "mam"
    attends: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    format: ClassVar[str] = "edgetune.adapters.native:TypedFormat"

    prefix_length: int | None = shared_knob(Prefix, "prefix_length")
    prefix_initial: Start | None = shared_knob(Prefix, "prefix_initial")
    prefix_text: str | None = shared_knob(Prefix, "prefix_text")
    reparameterize: bool = shared_knob(Prefix, "reparameterize")
    prefix_hidden: int = shared_knob(Prefix, "prefix_hidden")
    bottleneck: int | None = shared_knob(Bottleneck, "bottleneck")
    adapter_scale: float | None = shared_knob(Bottleneck, "adapter_scale")

    def __post_init__(self) -> None:
        """Refuse what either part refuses."""
        Method.__post_init__(self)
        _parts(self)

    @property
    def prefix(self) -> Prefix:
        """The part at attention."""
        return _parts(self)[0]

    @property
    def adapter(self) -> Bottleneck:
        """The part at the FFN."""
        return _parts(self)[1]

    @property
    def positions(self) -> int:
        """The prefix's positions."""
        return self.prefix.length

    def used(self) -> dict[str, Any]:
        """Return the settings with the sizes that hold."""
        own = self.prefix
        start = {"prefix_length": own.length, "prefix_initial": own.start}
        sizes = {"bottleneck": self.adapter.bottleneck, "adapter_scale": self.adapter.scale}
        return Method.used(self) | start | sizes

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return the tensors of both parts."""
        return self.prefix.tensors(shape) + self.adapter.tensors(shape)

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse what the prefix refuses."""
        return self.prefix.refusals(shape, context=context, quantization=quantization)

    def attend(self, block: Block[A], own: Adapted[A], attended: Attended[A]) -> A:
        """Return the attention with the prefix."""
        return self.prefix.attend(block, own, attended)

    def sublayer(self, block: Block[A], own: Adapted[A], which: Sublayer, x: A, out: A) -> A:
        """Return a half's output with the adapter's."""
        return self.adapter.sublayer(block, own, which, x, out)

    def everywhere(self, name: str) -> bool:
        """Return whether a tensor is the prefix's."""
        return self.prefix.everywhere(name)

    def on_disk(self) -> Mam:
        """Return the keys and values of the prefix alone, and the adapter."""
        return replace(self, reparameterize=False, prefix_initial="random", prefix_text=None)

    def fold(self, shape: ModelShape, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return the prefix folded, the adapter as it is."""
        prefix = {tensor.name for tensor in self.prefix.tensors(shape)}
        kept = {name: value for name, value in tensors.items() if name not in prefix}
        return kept | self.prefix.fold(shape, {name: tensors[name] for name in prefix})


@lru_cache(maxsize=16)
def _parts(mam: Mam) -> tuple[Prefix, Bottleneck]:
    """Return both parts; they are asked for in every block of every pass."""
    prefix = Prefix(
        prefix_length=30 if mam.prefix_length is None else mam.prefix_length,
        prefix_initial=mam.prefix_initial,
        prefix_text=mam.prefix_text,
        reparameterize=mam.reparameterize,
        prefix_hidden=mam.prefix_hidden,
    )
    adapter = Bottleneck(
        adapter_kind="parallel",
        bottleneck=512 if mam.bottleneck is None else mam.bottleneck,
        adapter_scale=mam.adapter_scale,
    )
    return prefix, adapter
