"""AdamW, with its state as named tensors.

The same code for every device and every precision of the state, some elements at a time: no
temporary is larger than a megabyte's worth of elements. Written here because torch's and
bitsandbytes' optimizers differ in what they keep, name and allocate.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from edgetune.errors import UsageError
from edgetune.settings.spec import ADAMW, OptimizerName
from edgetune_torch.moments import Moment, make_moment, restore, spans, state_of


class AdamW:
    """The optimizer that :class:`edgetune.settings.spec.AdamW` describes."""

    def __init__(
        self,
        name: OptimizerName,
        parameters: Mapping[str, Parameter],
        rates: Mapping[str, float],
        weight_decay: float,
    ) -> None:
        """Update ``parameters``, each at its entry in ``rates`` times the learning rate.

        Raises:
            UsageError: if the state is to be paged and there is no card to page from.
        """
        device = next(iter(parameters.values())).device
        if name.startswith("paged") and device.type != "cuda":
            raise UsageError(
                "--optimizer paged-adamw-8bit keeps its state outside of a card's memory, and "
                "there is no card: adamw-8bit is the same in place."
            )
        self.name = name
        self.parameters = parameters
        self.weight_decay = weight_decay
        self.rates = rates
        self._moments: dict[str, Moment] = {}

    def prepare(self) -> None:
        """Allocate the state, if it is not there: then a step that begins has all it needs."""
        if self._moments:
            return
        for key, parameter in self.parameters.items():
            size, device = parameter.numel(), parameter.device
            self._moments[f"{key}.exp_avg"] = make_moment(self.name, size, device, signed=True)
            self._moments[f"{key}.exp_avg_sq"] = make_moment(self.name, size, device, signed=False)

    @torch.no_grad()
    def step(self, learning_rate: float, number: int) -> None:
        """Update all parameters by their ``grad``; ``number`` counts steps from 1."""
        self.prepare()
        for key, parameter in self.parameters.items():
            if parameter.grad is not None:
                self._update(key, parameter, learning_rate * self.rates[key], number)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the state as ``<tensor name>.<part>``; nothing before the first step."""
        return state_of(self._moments)

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over what :meth:`state` returned.

        Raises:
            ModelError: naming everything that does not fit.
        """
        self._moments.clear()
        if state:
            self.prepare()
            restore(self._moments, state)

    def _update(self, key: str, parameter: Parameter, rate: float, number: int) -> None:
        first = self._moments[f"{key}.exp_avg"]
        second = self._moments[f"{key}.exp_avg_sq"]
        assert parameter.grad is not None
        flat, grad = parameter.data.view(-1), parameter.grad.view(-1)
        for span in spans(len(flat)):
            mean, square = first.read(span), second.read(span)
            _average(mean, square, grad[span])
            flat[span].mul_(1 - rate * self.weight_decay)
            correction = sqrt(1 - ADAMW.beta2**number)
            root = (square.sqrt() / correction).add_(ADAMW.eps)
            flat[span].addcdiv_(mean, root, value=-rate / (1 - ADAMW.beta1**number))
            first.write(span, mean)
            second.write(span, square)


def _average(mean: Tensor, square: Tensor, grad: Tensor) -> None:
    mean.lerp_(grad, 1 - ADAMW.beta1)
    square.mul_(ADAMW.beta2).addcmul_(grad, grad, value=1 - ADAMW.beta2)
