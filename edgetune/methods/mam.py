"""MAM adapter: a short prefix at attention and a parallel adapter at the FFN (He et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.bottleneck import Bottleneck
from edgetune.methods.prefix import Prefix
from edgetune.network.adaptation import Sublayer
from edgetune.network.ops import A, Attended
from edgetune.settings.spec import Interval, knob
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

    prefix_length: int | None = knob(
        None,
        "Trained keys and values per layer (default: 20; 30 for mam).",
        interval=Interval(low=1),
    )
    prefix_initial: Literal["text", "random"] | None = knob(
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
    bottleneck: int | None = knob(
        None, "Width of an adapter (default: 64; 512 for mam).", interval=Interval(low=1)
    )
    adapter_scale: float | None = knob(
        None,
        "What an adapter's output is multiplied by (default: 4 if parallel, else 1).",
        interval=Interval(above=0),
    )

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
