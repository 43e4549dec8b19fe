"""A planned step on tensors without content: its peak of live bytes, without the memory.

The engine runs as it is, in a mode in which tensors have shapes but no values. Where it asks for
a value (a loss, a norm, which tokens are under loss) it is given one.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgetune.choice import Choice
from edgetune.data.batch import full_batch
from edgetune.errors import UsageError
from edgetune.run_spec import RunSpec
from edgetune.shape import ModelShape
from edgetune_torch.fake import CPU, fake_engine, fake_method, warm_up
from edgetune_torch.gradients import Gradients
from edgetune_torch.optimizer import AdamW


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage from its first appearance to its end."""

    def __init__(self, device: torch.device = CPU) -> None:
        """Count from nothing; for a card, that is ``meta``, its own memory alone."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.card = device.type == "meta"
        self.live = 0
        self.peak = 0
        self.learnt: int | None = None
        """Loss tokens, where not every position is one: nothing is learned of a trained prompt."""
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def restart(self) -> None:
        """Forget the peak."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, or answer it if it asks for a value."""
        if func is torch.ops.prim.device.default:  # half of all calls, and slow to pass on
            return args[0].fake_device
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0
        if func is torch.ops.aten.nonzero.default:  # every token is under loss
            found = args[0]
            count = found.numel() if self.learnt is None else min(found.numel(), self.learnt)
            out = torch.empty(count, found.dim(), dtype=torch.long, device=found.device)
        elif func is torch.ops.aten.bincount.default:  # all tokens choose the same experts
            with unset_fake_temporarily():
                counts = torch.zeros(args[2], dtype=torch.long)
                counts[0] = args[0].numel()
            return counts
        else:
            out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and not (self.card and leaf.device.type == "cpu"):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = self._seen[storage] = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._end, size)

    def _end(self, size: int) -> None:
        self.live -= size


def dry_run(spec: RunSpec, shape: ModelShape) -> Mapping[str, int]:
    """Return the peak bytes of live tensors by phase.

    Raises:
        UsageError: for a card, which keeps other things in memory than a processor.
    """
    if spec.kind != "cpu":
        raise UsageError("--verify counts what a processor keeps: give it with --device cpu.")
    return live_peaks(shape, spec.choice)


def live_peaks(
    shape: ModelShape,
    choice: Choice,
    documents: tuple[int, ...] | None = None,
    live: LiveBytes | None = None,
    *,
    shared: tuple[int, ...] = (),
    device: torch.device = CPU,
) -> dict[str, int]:
    """Return the peaks of training and of evaluation; ``documents`` are the lengths in a row.

    ``shared`` are the tokens that each of them goes on from. The device ``meta`` stands for a card.
    Gradients and the optimizer's state are there from the first step on, and a second
    micro-batch finds what the first one found, so that one is enough.
    """
    warm_up(choice.quantization)
    live = live or LiveBytes(device)
    live.learnt = choice.tokens
    mode = nullcontext() if device.type == "meta" else FakeTensorMode(allow_non_fake_inputs=True)
    with mode, live:
        engine, method = fake_engine(shape, choice, device), fake_method(shape, choice, device)
        batch = full_batch(choice.micro_batch, choice.context, shape.vocabulary, documents, shared)
        gradients = Gradients(method.trained)
        optimizer = AdamW(choice.optimizer, method.trained, method.rates, 0.0)
        optimizer.prepare()
        engine.evaluate(batch, method.drawing(None))  # scratch memory is there from now on
        live.restart()
        engine.evaluate(batch, method.drawing(None))  # norms are made anew, as in a session
        evaluated = live.peak
        live.restart()
        method = method.drawing(method.spec.largest_step)
        engine.gradients(batch, method, scale=1.0)
        gradients.clip(1.0)
        optimizer.step(1e-4, 1)
        return {"train": live.peak, "evaluate": evaluated}
