"""Cross entropy over the loss tokens alone, a tile of logits at a time.

N loss tokens, D hidden size, V vocabulary, C tokens of a chunk, W rows of a slice of the head.
The gradient of the hidden states is computed in the forward pass. Logits are made tile by tile,
(C, W), and their log-sum-exp is kept up from tile to tile. A frozen head is walked over once: what a
tile adds to the gradient is summed beside the log-sum-exp, and divided by it at the end, so that one
tile is there at a time, wherever the head is. Only a head that is trained needs the slopes of all
logits: it keeps the tiles of one chunk, (C, V) float32 in all. On a card that our kernels serve, a
head that is there is multiplied at once instead (:mod:`edgetune_torch.card_loss`). On a processor a
kernel in C reads and changes tiles of bfloat16 (C, W) as they come from the product
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
from edgetune_torch.softmax import Softmax
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
            del rows  # before the next slice is there

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

    def chain(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Return the gradient before scale and cap of the gradient after; overwrites both."""
        if self.softcap is not None:
            gradient *= logits.div_(self.softcap).square_().neg_().add_(1)
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

    def take(self, softmax: Softmax, count: int) -> None:
        """Add the losses of the first ``count`` rows of a softmax that has seen all logits."""
        losses = softmax.losses[:count]
        self.loss += float(losses.sum(dtype=torch.float64))
        self.tokens += len(losses)
        self.correct += int((softmax.best == softmax.targets)[:count].sum())


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
    sums, softmax = Sums(), Softmax(targets)
    if head.rows.learns:
        grad = _by_slopes(x, count, head, softmax, scale)
    else:
        grad = _in_one_walk(x, head, softmax)
        grad *= scale if isinstance(scale, float) else scale[:, None]
    sums.take(softmax, count)
    grad = grad.to(x.dtype)
    grad[count:] = 0
    return sums, grad


def _in_one_walk(x: Tensor, head: Head, softmax: Softmax) -> Tensor:
    """Return the gradient (C, D) of the summed losses, float32, and take in all logits of x.

    The rows of the head are summed with weights e^(l - m), l being the logit and m the highest one so
    far; a higher one makes what is summed less. The targets' own rows are kept apart: their slope
    p - 1 is known at the end, and where p is near one it would be lost in a sum of 16-bit products.
    """
    dtype = product_dtype(x.dtype, x.device)
    summed = torch.zeros(x.shape, device=x.device)
    own = torch.zeros(x.shape, dtype=dtype, device=x.device)
    for span, tile, rows in head.tiles(x, narrow=head.narrow(x)):
        weights, shrunk = softmax.weigh(span, tile, head.chain)
        del tile
        at = softmax.targets_in(span)
        own[at] = rows[softmax.targets[at, 0] - span.start]
        weights = weights.to(dtype)
        _add(summed, shrunk, weights, rows)
        del weights, rows
    slopes = head.chain(softmax.target_slopes(), softmax.wanted.clone())
    summed /= softmax.total
    wide = own.float()
    del own
    summed += wide.mul_(slopes)
    return summed


def _add(summed: Tensor, shrunk: Tensor, weights: Tensor, rows: Tensor) -> None:
    """Let sums (C, D) shrink by (C, 1) and add rows (W, D) with weights (C, W)."""
    if weights.dtype == torch.float32:
        summed.mul_(shrunk).addmm_(weights, rows)
        return
    product = weights @ rows
    if kernel.served(product):
        kernel.add(summed, shrunk, product)
    else:
        summed.mul_(shrunk).add_(product)


def _by_slopes(
    x: Tensor, count: int, head: Head, softmax: Softmax, scale: float | Tensor
) -> Tensor:
    """Return ``scale`` times the gradient (C, D) of the losses, float32; takes in all logits of x.

    The head, which is trained, is given its own, by the first ``count`` rows.
    """
    kept = []
    for at, tile, _ in head.tiles(x, narrow=head.narrow(x)):
        softmax.add(at, tile)
        kept.append(tile)
        del tile
    kept.reverse()
    dtype = product_dtype(x.dtype, x.device)
    grad, log_total = torch.zeros(x.shape, device=x.device), softmax.log_total
    for span, rows in head.rows.slices(dtype):
        part = _slopes(head, softmax, span, kept.pop(), log_total, scale).to(dtype)
        head.rows.learn(span, part[:count], x[:count])
        if dtype == torch.float32:
            grad.addmm_(part, rows)
        else:
            grad += part @ rows
        del rows, part
    return grad


def _slopes(
    head: Head,
    softmax: Softmax,
    span: slice,
    tile: Tensor,
    log_total: Tensor,
    scale: float | Tensor,
) -> Tensor:
    """Return ``scale`` times the gradient of logits (C, W) as the product gave them, in their place
    unless they are capped.
    """
    if tile.dtype != torch.float32:
        scales = torch.as_tensor(scale).expand(len(tile)).contiguous()
        kernel.differentiate(tile, span.start, softmax.targets, log_total, scales)
        return tile
    probability = (tile - log_total).exp_() if head.softcap else tile.sub_(log_total).exp_()
    inside, index = softmax.inside(span)
    probability.scatter_add_(1, index, torch.where(inside, -1.0, 0.0))
    own = scale if isinstance(scale, float) else scale[:, None]
    return head.chain(probability.mul_(own), tile)


def loss_only(x: Tensor, targets: Tensor, count: int, head: Head) -> Sums:
    """Return the summed loss of the first rows of a chunk x (C, D) against targets (C,)."""
    if _at_once(x, head):
        from edgetune_torch.card_loss import loss_only as at_once

        return at_once(x, targets, count, head)
    sums = Sums()
    sums.take(_softmax(x, targets, head), count)
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


def _softmax(x: Tensor, targets: Tensor, head: Head) -> Softmax:
    """Return what is known of a chunk once all of its tiles were seen."""
    softmax = Softmax(targets)
    for span, tile, rows in head.tiles(x, narrow=head.narrow(x)):
        softmax.add(span, tile)
        del tile, rows
    return softmax
