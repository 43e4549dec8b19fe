"""Live bytes of one block at every moment of its passes: the engine's own, and as planned.

The block's text runs over both; each operation marks what lives when it is done, and the most
that lived since the mark before. On the way back, a gradient that is whole is a mark.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oracle import Case
from products import products

from edgetune.data.batch import full_batch
from edgetune.memory.batch_shape import Platform, batch_shape_of
from edgetune.memory.block_pass import SizedMethod
from edgetune.memory.eager import EagerOps
from edgetune.memory.ledger import Ledger
from edgetune.memory.sized import outside
from edgetune.methods.planned import kinds
from edgetune.network.block import Block

MARKED = frozenset({
    "norm", "linear", "lora_linear", "low_rank", "bias", "rotate", "attend", "attend_all", "gated",
    "activation", "add", "subtract", "scaled", "trained_linear", "add_bias", "times",
    "times_ratio", "times_heads", "float32_linear", "tanh", "from_heads",
})  # fmt: skip
"""Operations that are marked on their way back."""


@dataclass(frozen=True)
class Mark:
    """A moment: bytes that live, and the most since the moment before."""

    name: str
    live: int
    peak: int


class Marks:
    """The moments of a pass, of whatever counts ``live`` and ``peak``."""

    def __init__(self, counted: Any) -> None:
        self.counted = counted
        self.base = counted.live
        self.found: list[Mark] = []
        self.beside: Callable[[], int] = lambda: 0
        """Bytes that are there too, but counted elsewhere."""
        counted.peak = counted.live

    def mark(self, name: str) -> None:
        counted, base = self.counted, self.base - self.beside()
        self.found.append(Mark(name, counted.live - base, counted.peak - base))
        counted.peak = counted.live


class Marked:
    """Operations that mark their ends."""

    def __init__(self, ops: Any, marks: Marks, watch: Callable[[Any, str], None]) -> None:
        self._ops, self._marks, self._watch = ops, marks, watch

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._ops, name)

        def called(*given: Any, **named: Any) -> Any:
            out = function(*given, **named)
            self._marks.mark(name)
            if name in MARKED:
                self._watch(out, f"back to {name}")
            return out

        return called


def planned(case: Case, layer: int, *, multiplies_16bit: bool, goes_on: bool) -> list[Mark]:
    """Return the moments of a block's passes with gradients, by its text over sizes."""
    shape, choice = case.shape, case.choice
    rows = batch_shape_of(shape, choice, Platform(kind="cpu", multiplies_16bit=multiplies_16bit))
    ledger = Ledger()
    ops = EagerOps(shape, rows, ledger, layer, quantized=choice.quantization == "nf4")
    kind = kinds(choice.method, shape, choice.method.tensors(shape))[layer]
    own = SizedMethod(choice.method, shape, {})
    own = own.with_tensors(kind.tensors, grad=True, training=True)
    x = outside((rows.batch, rows.context, shape.hidden_size), rows.width, needs=goes_on)
    marks = Marks(ledger)
    marks.beside = lambda: sum(norms.nbytes for norms in own.kept.norms.values())

    def watch(out: Any, name: str) -> None:
        ops.tape.watched.setdefault(out.key, []).insert(0, lambda: marks.mark(name))

    out = Block(Marked(ops, marks, watch), shape, layer, own).output(x)
    marks.mark("output")
    leaves = frozenset(each.key for each in own.tensors.values())
    left = ops.tape.backward({out.key: None}, leaves)
    marks.mark("done")
    del left
    return marks.found


def counted(case: Case, layer: int, *, multiplies_16bit: bool, goes_on: bool) -> list[Mark]:
    """Return the same moments in the engine."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from edgetune_torch.dry_run import LiveBytes
    from edgetune_torch.fake import fake_engine, fake_method, warm_up
    from edgetune_torch.gradients import Gradients
    from edgetune_torch.ops import TorchOps

    shape, choice = case.shape, case.choice
    warm_up(choice.quantization)
    live = LiveBytes()
    with (
        products(multiplies_16bit=multiplies_16bit),
        FakeTensorMode(allow_non_fake_inputs=True),
        live,
    ):
        engine, method = fake_engine(shape, choice), fake_method(shape, choice)
        gradients = Gradients(method.trained)
        batch = full_batch(choice.micro_batch, choice.context, shape.vocabulary)
        engine.evaluate(batch, method)  # scratch memory and tables are there from now on
        layout, _, _ = engine._layout(batch, method)
        own = method.drawing(method.spec.largest_step)
        size = (choice.micro_batch, layout.positions.shape[1], shape.hidden_size)
        x = torch.empty(size, dtype=layout.dtype).requires_grad_(goes_on)
        ops = TorchOps(shape, engine.decoder.weights, engine.decoder.weights.blocks[layer], layout)
        for rule in shape.attention:
            if rule.rotary is not None:
                layout.cos_sin(rule.rotary)
        grad = torch.empty(size, dtype=layout.dtype)
        marks = Marks(live)

        def watch(out: Any, name: str) -> None:
            if out.requires_grad:
                out.register_hook(lambda _: marks.mark(name))

        out = Block(Marked(ops, marks, watch), shape, layer, own).output(x)
        marks.mark("output")
        torch.autograd.backward(out, grad)
        marks.mark("done")
        del gradients
    return marks.found
