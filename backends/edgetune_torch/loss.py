"""Cross entropy over the loss tokens alone, a tile of logits at a time.

N loss tokens, D hidden size, V vocabulary, C tokens of a chunk, W rows of a slice of the head.
The gradient of the hidden states is computed in the forward pass. Logits are made tile by tile,
(C, W), and their log-sum-exp is kept up from tile to tile. A head on the device keeps the tiles
of one chunk, (C, V) float32 in all, for the gradient; a streamed head makes each tile twice and
holds one. Both compute the same numbers from the same tiles, bit for bit. On a card that our kernels
serve, a head that is there is multiplied at once instead (:mod:`edgetune_torch.card_loss`). On a processor a
kernel in C reads and differentiates tiles of bfloat16 (C, W) as they come from the product
(:mod:`edgetune_torch.cpu_kernels.loss`): no float32 tile is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgetune.buckets import chunked
from edgetune.data.batch import IGNORED
from edgetune.network.adaptation import Adaptation
from edgetune_torch import kernels
from edgetune_torch.cpu_kernels import loss as kernel
from edgetune_torch.precision import product_dtype
from edgetune_torch.vocabulary import HeadRows, TrainedHead


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The output projection (V, D) and what is done to its logits."""

    rows: HeadRows
    bias: Tensor | None
    scale: float
    softcap: float | None

    def of(self, method: Adaptation[Tensor]) -> Head:
        """Return the head that a method trains, this one if it trains none."""
        weight = method.head
        return (
            self if weight is None else replace(self, rows=TrainedHead(weight, self.rows.workspace))
        )

    def logits_of_rows(self, x: Tensor, method: Adaptation[Tensor]) -> Tensor:
        """Return float32 logits (B, V) of hidden states (B, D), each by its row's adaptation."""
        each = method.of_rows(len(x))
        if all(one.head is each[0].head for one in each):
            return self.of(each[0]).logits(x)
        return torch.cat([self.of(one).logits(x[i : i + 1]) for i, one in enumerate(each)])

    def logits(self, x: Tensor) -> Tensor:
        """Return float32 logits (C, V) of hidden states (C, D)."""
        out = torch.empty(len(x), self.rows.vocabulary, device=x.device)
        for span, tile, _ in self.tiles(x):
            out[:, span] = tile
        return out

    def tiles(self, x: Tensor, *, narrow: bool = False) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield vocabulary span, float32 logits (C, W) and the rows (W, D) they came from.

        ``narrow``: logits as the product gives them, for a head that does nothing to them.
        """
        dtype = product_dtype(x.dtype, x.device)
        wide = x.to(dtype)
        for span, rows in self.rows.slices(dtype):
            self.rows.workspace.check()
            yield span, self._tile(wide, rows, span, narrow=narrow), rows

    def narrow(self, x: Tensor) -> bool:
        """Return whether a kernel reads the logits of x (C, D) as the product gives them."""
        plain = self.bias is None and self.scale == 1.0 and self.softcap is None
        return plain and kernel.served(x)

    def _tile(self, x: Tensor, rows: Tensor, span: slice, *, narrow: bool) -> Tensor:
        return x @ rows.T if narrow else self._finished((x @ rows.T).float(), span)

    def _finished(self, tile: Tensor, span: slice) -> Tensor:
        if self.bias is not None:
            tile += self.bias[span]
        if self.scale != 1.0:
            tile *= self.scale
        if self.softcap is not None:
            tile.div_(self.softcap).tanh_().mul_(self.softcap)
        return tile

    def chain(self, gradient: Tensor, tile: Tensor) -> Tensor:
        """Return the gradient before scale and cap of the gradient after; overwrites it."""
        if self.softcap is not None:
            gradient *= 1 - (tile / self.softcap) ** 2
        if self.scale != 1.0:
            gradient *= self.scale
        return gradient


@dataclass(slots=True)
class Sums:
    """Summed loss, loss tokens, and how many of them were predicted as the most probable."""

    loss: float = 0.0
    tokens: int = 0
    correct: int = 0

    def add(self, other: Sums) -> None:
        """Add those of other tokens."""
        self.loss += other.loss
        self.tokens += other.tokens
        self.correct += other.correct


class _Softmax:
    """What is known of the softmax of C rows after some tiles."""

    def __init__(self, targets: Tensor) -> None:
        """Begin with no tile, for targets (C,)."""
        shape, device = (len(targets), 1), targets.device
        self.targets = targets.long()[:, None]
        self.highest = torch.full(shape, float("-inf"), device=device)
        self.best = torch.zeros(shape, dtype=torch.long, device=device)
        self.total = torch.zeros(shape, device=device)
        self.wanted = torch.zeros(shape, device=device)

    def add(self, span: slice, tile: Tensor) -> None:
        """Take in the logits (C, W) of a span of the vocabulary, narrow ones by a kernel."""
        if tile.dtype != torch.float32:
            kernel.take_in(tile, span.start, self.known)
            return
        high, at = tile.max(-1, keepdim=True)
        self.best = torch.where(high > self.highest, at + span.start, self.best)
        highest = torch.maximum(self.highest, high)
        self.total *= torch.exp(self.highest - highest)
        self.total += (tile - highest).exp_().sum(-1, keepdim=True)
        self.highest = highest
        inside, index = self.inside(span)
        self.wanted += torch.where(inside, tile.gather(1, index), 0.0)

    def inside(self, span: slice) -> tuple[Tensor, Tensor]:
        """Return whose target is in a span, and where in it, 0 for the others; both (C, 1)."""
        inside = (self.targets >= span.start) & (self.targets < span.stop)
        return inside, torch.where(inside, self.targets - span.start, 0)

    @property
    def known(self) -> kernel.Known:
        """What a kernel reads and changes."""
        return kernel.Known(self.targets, self.highest, self.total, self.wanted, self.best)

    @property
    def log_total(self) -> Tensor:
        """The log-sum-exp of every row, (C, 1)."""
        return self.highest + self.total.log()

    @property
    def losses(self) -> Tensor:
        """The loss of every row, (C,)."""
        return (self.log_total - self.wanted)[:, 0]

    def add_to(self, sums: Sums, count: int) -> None:
        """Add the losses of the first ``count`` rows."""
        losses = self.losses[:count]
        sums.loss += float(losses.sum(dtype=torch.float64))
        sums.tokens += len(losses)
        sums.correct += int((self.best == self.targets)[:count].sum())


def loss_positions(targets: Tensor, chunk: int) -> tuple[Tensor, int]:
    """Return the flat indices (N,) of the positions under loss in targets (B, S), filled up.

    The last chunk is filled up with the first index, so that chunks have few lengths; with the
    indices comes how many are under loss.
    """
    at = (targets.reshape(-1) != IGNORED).nonzero(as_tuple=True)[0]
    filling = min(chunked(len(at), chunk), targets.numel()) - len(at)
    return torch.cat((at, at[:1].expand(filling))) if filling else at, len(at)


def loss_and_gradient(
    x: Tensor, targets: Tensor, count: int, head: Head, *, scale: float | Tensor
) -> tuple[Sums, Tensor]:
    """Return the summed loss of a chunk x (C, D) and ``scale`` times its gradient (C, D).

    ``targets`` (C,) holds token ids only; ``scale`` is one number or one for every row, (C,). Rows
    behind the first ``count`` add nothing to the loss, and their gradient is zero.
    """
    if _at_once(x, head):
        from edgetune_torch.card_loss import loss_and_gradient as at_once

        return at_once(x, targets, count, head, scale)
    sums, softmax, kept = Sums(), _Softmax(targets), []
    for at, tile, rows in head.tiles(x, narrow=head.narrow(x)):
        softmax.add(at, tile)
        if not head.rows.streamed:
            kept.append(tile)
        del tile, rows  # not needed any more while the next ones are made
    softmax.add_to(sums, count)
    own = scale if isinstance(scale, float) else scale[:, None]
    grad = _gradient(x, count, head, softmax, kept, own).to(x.dtype)
    grad[count:] = 0
    return sums, grad


def _gradient(
    x: Tensor,
    count: int,
    head: Head,
    softmax: _Softmax,
    kept: list[Tensor],
    scale: float | Tensor,
) -> Tensor:
    """Return the gradient (C, D) of the hidden states; takes the ``kept`` tiles away.

    A head that is trained is given its own, by the first ``count`` rows.
    """
    dtype = product_dtype(x.dtype, x.device)
    grad, log_total = torch.zeros(x.shape, device=x.device), softmax.log_total
    for span, tile, rows in _again(x, head, kept, dtype):
        part = _slopes(head, softmax, span, tile, log_total, scale).to(dtype)
        head.rows.learn(span, part[:count], x[:count])
        if dtype == torch.float32:
            grad.addmm_(part, rows)
        else:
            grad += part @ rows
        del tile, rows, part
    return grad


def _slopes(
    head: Head,
    softmax: _Softmax,
    span: slice,
    tile: Tensor,
    log_total: Tensor,
    scale: float | Tensor,
) -> Tensor:
    """Return ``scale`` times the gradient of logits (C, W) as the product gave them, in their place
    unless they are capped.
    """
    if tile.dtype != torch.float32:
        scales = torch.as_tensor(scale).expand(len(tile), 1).contiguous()
        kernel.differentiate(tile, span.start, softmax.targets, log_total, scales)
        return tile
    probability = (tile - log_total).exp_() if head.softcap else tile.sub_(log_total).exp_()
    inside, index = softmax.inside(span)
    probability.scatter_add_(1, index, torch.where(inside, -1.0, 0.0))
    return head.chain(probability.mul_(scale), tile)


def _again(
    x: Tensor, head: Head, kept: list[Tensor], dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    if head.rows.streamed:
        yield from head.tiles(x, narrow=head.narrow(x))
        return
    kept.reverse()
    for span, rows in head.rows.slices(dtype):
        yield span, kept.pop(), rows


def loss_only(x: Tensor, targets: Tensor, count: int, head: Head) -> Sums:
    """Return the summed loss of the first rows of a chunk x (C, D) against targets (C,)."""
    if _at_once(x, head):
        from edgetune_torch.card_loss import loss_only as at_once

        return at_once(x, targets, count, head)
    sums = Sums()
    _softmax(x, targets, head).add_to(sums, count)
    return sums


def token_losses(x: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Return the loss of every row of a chunk x (C, D) against targets (C,), float32 (C,)."""
    if _at_once(x, head):
        from edgetune_torch.card_loss import token_losses as at_once

        return at_once(x, targets, head)
    return _softmax(x, targets, head).losses


def _at_once(x: Tensor, head: Head) -> bool:
    """Return whether a kernel goes over whole rows of logits, and not over tiles of them."""
    return kernels.served(x.device) and not head.rows.streamed


def _softmax(x: Tensor, targets: Tensor, head: Head) -> _Softmax:
    """Return what is known of a chunk once all of its tiles were seen."""
    softmax = _Softmax(targets)
    for span, tile, rows in head.tiles(x, narrow=head.narrow(x)):
        softmax.add(span, tile)
        del tile, rows
    return softmax
