"""The outputs of blocks where the rows' answers begin, and gradients that are added to theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetune.backend import Pull
from edgetune.data.batch import answer_starts
from edgetune.network.adaptation import Adaptation
from edgetune_torch.token_layout import TokenLayout

if TYPE_CHECKING:
    from edgetune_torch.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Pulls:
    """What is added to the gradients of blocks' outputs; ``starts`` (B,) is where answers begin."""

    pull: Pull
    starts: Tensor

    @torch.no_grad()
    def add(self, layer: int, out: Tensor, grad: Tensor) -> None:
        """Add to the gradient (B, S, D) of a block's output (B, S, D)."""
        found = self.pull(layer, _at(out, self.starts))
        rows = torch.arange(len(out), device=out.device)
        grad[rows, self.starts] += torch.from_numpy(found).to(grad)


def activations(
    decoder: Decoder,
    tokens: Tensor,
    starts: Tensor,
    layout: TokenLayout,
    method: Adaptation[Tensor],
) -> NDArray[np.float32]:
    """Return the output of each block (L, B, D) at a position of each row of tokens (B, S)."""
    x, blocks, found = decoder.embed(tokens, layout, method), decoder.tiled(layout, method), []
    for layer in decoder.weights.blocks.walk(range(decoder.shape.layers)):
        x = blocks.forward(layer, x)
        found.append(_at(x, starts))
    return np.stack(found)


def answer_starts_of(targets: Tensor) -> Tensor:
    """Return where the first token of each row's (B, S) last answer is predicted from (B,)."""
    return torch.from_numpy(answer_starts(targets.cpu().numpy())).to(targets.device)


def _at(x: Tensor, starts: Tensor) -> NDArray[np.float32]:
    """Return the states (B, D) of x (B, S, D) at a position of each row."""
    states = x.detach()[torch.arange(len(x), device=x.device), starts]
    found: NDArray[np.float32] = states.float().cpu().numpy()
    return found
