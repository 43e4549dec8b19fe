"""The optimizers, with their state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from edgetune.errors import ModelError
from edgetune.spec import ADAMW


def make_optimizer(
    name: str, parameters: Mapping[str, Parameter], weight_decay: float
) -> torch.optim.Optimizer:
    """Return an optimizer over the trained tensors, with the semantics of ``AdamW``."""
    options = {
        "lr": 0.0,
        "betas": (ADAMW.beta1, ADAMW.beta2),
        "eps": ADAMW.eps,
        "weight_decay": weight_decay,
    }
    tensors = list(parameters.values())
    if name == "adamw":
        return torch.optim.AdamW(tensors, **options)  # type: ignore[arg-type]
    from bitsandbytes import optim

    classes = {"adamw-8bit": optim.AdamW8bit, "paged-adamw-8bit": optim.PagedAdamW8bit}
    optimizer: torch.optim.Optimizer = classes[name](tensors, **options)
    return optimizer


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Parameter]
) -> dict[str, NDArray[np.generic]]:
    """Return the optimizer's state as ``<tensor name>.<part>``; nothing before the first step."""
    state: dict[str, NDArray[np.generic]] = {}
    for name, parameter in parameters.items():
        for part, value in optimizer.state.get(parameter, {}).items():
            plain = value if isinstance(value, Tensor) else torch.tensor(value)
            state[f"{name}.{part}"] = plain.detach().cpu().numpy().copy()
    return state


def restore_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Parameter],
    state: Mapping[str, NDArray[np.generic]],
) -> None:
    """Take over what :func:`state_tensors` returned.

    Raises:
        ModelError: if a name belongs to no trained tensor.
    """
    left = dict(state)
    for name, parameter in parameters.items():
        parts = {key for key in left if key.startswith(f"{name}.")}
        for key in parts:
            optimizer.state[parameter][key.removeprefix(f"{name}.")] = _value(
                left.pop(key), parameter
            )
    if left:
        raise ModelError(f"The optimizer state holds unknown tensors: {', '.join(sorted(left))}.")


def _value(array: NDArray[np.generic], parameter: Parameter) -> Tensor | int:
    if array.dtype == np.int64 and array.ndim == 0:
        return int(array)  # bitsandbytes counts steps in a plain int
    # torch keeps its step counter, a float scalar, on the host
    device = "cpu" if array.ndim == 0 else parameter.device
    return torch.from_numpy(array.copy()).to(device)
