"""AdamW, with its state as named tensors.

The same code for every device and every precision of the state, some elements at a time, in
buffers that are allocated before anything changes. Written here because torch's and bitsandbytes'
optimizers differ in what they keep, name and allocate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.errors import ModelError, UsageError
from edgetune.settings.spec import ADAMW, PAGED, OptimizerName
from edgetune_torch import kernels
from edgetune_torch.commit import Commit
from edgetune_torch.dynamic_map import load_tables
from edgetune_torch.moments import (
    BLOCK,
    Moment,
    MomentBuffers,
    chunk_of,
    in_bytes,
    make_moment,
    part,
    restore,
    spans,
    state_of,
)


class AdamW:
    """The optimizer that :class:`edgetune.settings.spec.AdamW` describes."""

    def __init__(
        self,
        name: OptimizerName,
        parameters: Mapping[str, Tensor],
        rates: Mapping[str, float],
        weight_decay: float,
    ) -> None:
        """Update ``parameters``, each at its entry in ``rates`` times the learning rate.

        Raises:
            UsageError: if the state is to be paged and there is no card to page from.
        """
        device = next(iter(parameters.values())).device
        if name == PAGED and device.type != "cuda":
            raise UsageError(
                "--optimizer paged-adamw-8bit keeps its state outside of a card's memory, and "
                "there is no card: adamw-8bit is the same in place."
            )
        self.name = name
        self.parameters = parameters
        self.weight_decay = weight_decay
        self.rates = rates
        self.torn = False
        """Whether an update was broken off half-way and nothing was restored since."""
        self._moments: dict[str, Moment] = {}

    def prepare(self) -> None:
        """Allocate the state, if it is not there: then a step that begins has all it needs."""
        if self._moments:
            return
        moments: dict[str, Moment] = {}
        for key, parameter in self.parameters.items():
            size, device = parameter.numel(), parameter.device
            moments[f"{key}.exp_avg"] = make_moment(self.name, size, device, signed=True)
            moments[f"{key}.exp_avg_sq"] = make_moment(self.name, size, device, signed=False)
        self._moments = moments

    def step(self, learning_rate: float, number: int) -> None:
        """Update all parameters by their ``grad``; ``number`` counts steps from 1."""
        self.update(learning_rate, number)()

    def update(self, learning_rate: float, number: int) -> Callable[[], None]:
        """Allocate all that a step takes, and return what takes it by the ``grad`` there is then.

        The largest tensor comes first: what a device allocates when it does something for the
        first time is there before anything has changed. Nothing has if memory runs out, unless
        ``torn``.
        """
        self.prepare()
        order = sorted(self.parameters, key=lambda key: -self.parameters[key].numel())
        updates = [
            self._of(key, Factors.of(learning_rate * self.rates[key], self.weight_decay, number))
            for key in order
            if self.parameters[key].grad is not None
        ]
        if kernels.served(self.parameters[order[0]].device):
            from edgetune_torch.kernels.adamw import prepared

            return partial(self._launch, prepared(updates))
        return partial(self._take, updates, UpdateBuffers.of(self.name, self.parameters[order[0]]))

    @torch.no_grad()
    def _launch(self, launches: Sequence[Callable[[], None]]) -> None:
        for launch in launches:
            launch()
            self.torn = True
        self.torn = False

    @torch.no_grad()
    def _take(self, updates: Sequence[TensorUpdate], buffers: UpdateBuffers) -> None:
        commit = Commit()
        for update in updates:
            for span in spans(len(update.weight), chunk_of(update.weight.device)):
                commit.finish(partial(update.compute, span, buffers))
                self.torn = commit.begun = True
                commit.finish(partial(update.overwrite, span, buffers))
        self.torn = False

    def state(self, *, copied: bool = True) -> dict[str, NDArray[np.generic]]:
        """Return the state as ``<tensor name>.<part>``; nothing before the first step."""
        self._settle()
        return state_of(self._moments, copied=copied)

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            ModelError: naming everything that does not fit; nothing has changed then.
        """
        self._settle()
        before = self._moments
        if not state:
            self._moments = {}
        else:
            self.prepare()
            try:
                restore(self._moments, state)
            except ModelError:
                self._moments = before
                raise
        self.torn = False

    def _settle(self) -> None:
        """Wait until a card has written what is in the host's memory."""
        device = next(iter(self.parameters.values())).device
        if self.name == PAGED and device.type == "cuda":
            torch.cuda.synchronize(device)

    def _of(self, key: str, factors: Factors) -> TensorUpdate:
        parameter = self.parameters[key]
        return TensorUpdate(
            weight=parameter.data.view(-1),
            grad=cast("Tensor", parameter.grad).view(-1),
            first=self._moments[f"{key}.exp_avg"],
            second=self._moments[f"{key}.exp_avg_sq"],
            factors=factors,
        )


@dataclass(frozen=True, slots=True)
class Factors:
    """The numbers of one tensor's update."""

    decay: float
    correction: float
    share: float

    @classmethod
    def of(cls, rate: float, weight_decay: float, number: int) -> Factors:
        """Return those of step ``number``."""
        return cls(
            decay=1 - rate * weight_decay,
            correction=sqrt(1 - ADAMW.beta2**number),
            share=rate / (1 - ADAMW.beta1**number),
        )


@dataclass(frozen=True, slots=True)
class UpdateBuffers:
    """All memory that an update takes, but for what keeps the state: (M,) float32 each."""

    first: MomentBuffers
    second: MomentBuffers
    weight: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, name: str, largest: Tensor) -> UpdateBuffers:
        """Allocate what the largest tensor wants."""
        device, count = largest.device, largest.numel()
        size = min(count, chunk_of(device))
        index = None
        if in_bytes(name, count):
            load_tables(device)
            size += -size % BLOCK
            index = torch.empty(size, dtype=torch.int32, device=device)
        moments = (MomentBuffers(size, device, index), MomentBuffers(size, device, index))
        return cls(*moments, torch.empty(size, device=device), torch.empty(size, device=device))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorUpdate:
    """The update of one tensor, flat, by spans: both parts of a span can be done again."""

    weight: Tensor
    grad: Tensor
    first: Moment
    second: Moment
    factors: Factors

    def compute(self, span: slice, buffers: UpdateBuffers) -> None:
        """Put what a span becomes into the buffers."""
        size, grad = span.stop - span.start, part(self.grad, span)
        mean, square = buffers.first.values[:size], buffers.second.values[:size]
        after, deviation = buffers.weight[:size], buffers.deviation[:size]
        torch.lerp(self.first.read(span, buffers.first), grad, 1 - ADAMW.beta1, out=mean)
        torch.mul(self.second.read(span, buffers.second), ADAMW.beta2, out=square)
        square.addcmul_(grad, grad, value=1 - ADAMW.beta2)
        torch.sqrt(square, out=deviation).div_(self.factors.correction).add_(ADAMW.eps)
        torch.mul(part(self.weight, span), self.factors.decay, out=after)
        after.addcdiv_(mean, deviation, value=-self.factors.share)
        self.first.encode(span, buffers.first, buffers.deviation)
        self.second.encode(span, buffers.second, buffers.deviation)

    def overwrite(self, span: slice, buffers: UpdateBuffers) -> None:
        """Put what is in the buffers into its place."""
        part(self.weight, span).copy_(buffers.weight[: span.stop - span.start])
        self.first.commit(span, buffers.first)
        self.second.commit(span, buffers.second)
