"""Gated DeltaNet's mixer: a short convolution, and the delta rule over what it makes.

In pieces of tokens, in float32, rounded once; nothing but the inputs is saved, and the states
between the pieces are made again on the way back. B rows, S positions, H heads of values, G of
keys, K channels of a key, V of a value, C = 2 G K + H V channels that are convolved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune.mixer import PIECE
from edgetune.network.mixers.gated_delta import GatedDelta
from edgetune_torch import delta_rule
from edgetune_torch.convolution import taps_of
from edgetune_torch.delta_rule import Reach, Tokens
from edgetune_torch.documents import Documents
from edgetune_torch.piece_convolution import PieceConvolution, document_numbers

LEAST = 1e-6
"""Added to squared lengths of queries and keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The mixer's own tensors: of the convolution (C, 1, taps), and a number a head (H)."""

    conv: Tensor
    a_log: Tensor
    dt_bias: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Parameters:
        """Take them by their roles."""
        return cls(conv=tensors["conv"], a_log=tensors["a_log"], dt_bias=tensors["dt_bias"])


class Rule(torch.autograd.Function):
    """Saves its inputs. The first ``skipped`` tokens are convolved alone: the state is behind them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b: Tensor, a: Tensor, conv: Tensor, a_log: Tensor, dt_bias: Tensor,
        state: Tensor | None, mixer: GatedDelta, documents: Documents, skipped: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return what is read (B, S, H V) of x (B, S, C), b and a (B, S, H), and the state behind it."""
        ctx.save_for_backward(x, b, a, conv, a_log, dt_bias, state)
        ctx.mixer, ctx.documents, ctx.skipped = mixer, documents, skipped
        ctx.set_materialize_grads(False)  # where nobody reads the state behind it
        own = Parameters(conv=conv, a_log=a_log, dt_bias=dt_bias)
        out = x.new_empty(*x.shape[:2], mixer.values)
        out[:, :skipped] = 0
        state = _empty_state(x, mixer) if state is None else state
        for piece in Pieces(x, b, a, own, mixer, documents, skipped):
            found, state = delta_rule.advance(piece.tokens(), state, piece.reach())
            piece.put(out[:, skipped:], found)
            del found
        return out, state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs, and of trained tensors."""
        x, b, a, conv, a_log, dt_bias, before = ctx.saved_tensors
        mixer, skipped, (grad, state_grad) = ctx.mixer, ctx.skipped, grads
        own = Parameters(conv=conv, a_log=a_log, dt_bias=dt_bias)
        pieces = list(Pieces(x, b, a, own, mixer, ctx.documents, skipped))
        states = [_empty_state(x, mixer) if before is None else before]
        for piece in pieces[:-1]:
            states.append(delta_rule.state_behind(piece.tokens(), states[-1], piece.reach()))
        found = Found.of(x, b, a, own)
        state_grad = torch.zeros_like(states[0]) if state_grad is None else state_grad
        here = found.behind(skipped)
        for piece in reversed(pieces):
            read, state = piece.take(grad[:, skipped:]), states.pop()
            tokens_grad, state_grad = delta_rule.go_back(
                piece.tokens(), state, piece.reach(), read, state_grad
            )
            del read, state
            piece.go_back(tokens_grad, here)
            del tokens_grad
        of_state = None if before is None else state_grad
        return *found.of_inputs(ctx.needs_input_grad), of_state, None, None, None


@dataclass(slots=True)
class Found:
    """Gradients that grow piece by piece, in float32 where they are sums."""

    x: Tensor
    b: Tensor
    a: Tensor
    conv: Tensor
    a_log: Tensor
    dt_bias: Tensor

    @classmethod
    def of(cls, x: Tensor, b: Tensor, a: Tensor, own: Parameters) -> Found:
        """Return zeros; what precedes a piece is added to, and so x's are wide."""
        wide = torch.promote_types(x.dtype, torch.float32)
        small = (own.conv, own.a_log, own.dt_bias)
        return cls(
            torch.zeros_like(x, dtype=wide), torch.zeros_like(b), torch.zeros_like(a),
            *(torch.zeros_like(each, dtype=wide) for each in small),
        )  # fmt: skip

    def behind(self, skipped: int) -> Found:
        """Return the same of b and a behind the first tokens."""
        return replace(self, b=self.b[:, skipped:], a=self.a[:, skipped:])

    def of_inputs(self, wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of the inputs, those that are wanted."""
        found = (self.x.to(self.b.dtype), self.b, self.a, self.conv, self.a_log, self.dt_bias)
        return tuple(each if want else None for each, want in zip(found, wanted, strict=False))


def mixed(
    mixer: GatedDelta, inputs: Sequence[Tensor], own: Mapping[str, Tensor], documents: Documents
) -> Tensor:
    """Return what is read (B, S, H V) of x (B, S, C), b and a (B, S, H)."""
    return mixed_in_tile(mixer, inputs, own, documents, None, 0)[0]


def mixed_in_tile(
    mixer: GatedDelta, inputs: Sequence[Tensor], own: Mapping[str, Tensor], documents: Documents,
    state: Tensor | None, skipped: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what is read of a tile, and the state (B H, K, V) behind it for the one before it.

    The first ``skipped`` tokens were read before: the next ones are convolved with them. Nothing is
    read of them again (zeros).
    """
    each = Parameters.of(own)
    found: tuple[Tensor, Tensor] = Rule.apply(  # type: ignore[no-untyped-call]
        *inputs, each.conv, each.a_log, each.dt_bias, state, mixer, documents, skipped
    )
    return found


def mixed_after(
    mixer: GatedDelta,
    inputs: Sequence[Tensor],
    own: Mapping[str, Tensor],
    before: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the same of the next tokens of one document, and what its next ones need.

    ``before`` are the last inputs (1, taps - 1, C) and the state, as this returned them.
    """
    x, b, a = inputs
    last = x.new_zeros(1, mixer.taps - 1, x.shape[2]) if before is None else before[0]
    state = _empty_state(x, mixer) if before is None else before[1]
    out = x.new_empty(*x.shape[:2], mixer.values)
    whole, kept = torch.cat((last, x), 1), mixer.taps - 1
    b, a = (F.pad(each, (0, 0, kept, 0)) for each in (b, a))
    for piece in Pieces(whole, b, a, Parameters.of(own), mixer, (), kept):
        found, state = delta_rule.advance(piece.tokens(), state, None)
        piece.put(out, found)
    return out, (whole[:, whole.shape[1] - kept :].clone(), state)


def _empty_state(x: Tensor, mixer: GatedDelta) -> Tensor:
    """Return the state (B H, K, V) of the beginning."""
    wide = torch.promote_types(x.dtype, torch.float32)
    size = (len(x) * mixer.value_heads, mixer.key_dim, mixer.value_dim)
    return x.new_zeros(size, dtype=wide)


class Pieces:
    """The pieces of rows, from the first on."""

    def __init__(
        self, x: Tensor, b: Tensor, a: Tensor, own: Parameters, mixer: GatedDelta,
        documents: Documents, skipped: int = 0,
    ) -> None:  # fmt: skip
        """Begin with all of them at ``skipped``."""
        self.x, self.own, self.mixer, self.skipped = x, own, mixer, skipped
        self.b, self.a = b[:, skipped:], a[:, skipped:]
        taps = taps_of(own.conv)
        self.dtype = taps.dtype
        self.documents = document_numbers(documents, x, x.shape[1])
        self.convolution = PieceConvolution(x, taps, self.documents, skipped)

    def __iter__(self) -> Iterator[Piece]:
        """Yield the pieces."""
        edges = [*range(0, self.b.shape[1], PIECE), self.b.shape[1]]
        for start, stop in pairwise(edges):
            yield Piece(self, start, stop)


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens from ``start`` to ``stop`` of all rows."""

    of: Pieces
    start: int
    stop: int

    def tokens(self) -> Tokens:
        """Return what the rule reads of the tokens."""
        mixer = self.of.mixer
        q, k, v = self._parts(
            F.silu(self.of.convolution.output(self.start, self.stop), inplace=True)
        )
        beta = self._of_heads(self.of.b[:, self.start : self.stop]).sigmoid_()
        decay = self._rates().cumsum(-1)
        return Tokens(
            self._unit(q).mul_(mixer.key_dim**-0.5), self._unit(k), self._by_head(v), beta, decay
        )

    def reach(self) -> Reach | None:
        """Return what the tokens can see, if rows hold several documents."""
        if self.of.documents is None:
            return None
        first, skipped = self.of.skipped + self.start, self.of.skipped
        numbers = self.of.documents[:, first : skipped + self.stop]  # (B, T)
        before = self.of.documents[:, max(0, first - 1)][:, None]
        last, heads = numbers[:, -1:], self.of.mixer.value_heads
        return Reach(
            start=(numbers == before).repeat_interleave(heads, 0),
            end=(numbers == last).repeat_interleave(heads, 0),
            through=(before == last).repeat_interleave(heads, 0),
            hidden=(numbers[:, :, None] != numbers[:, None]).repeat_interleave(heads, 0),
        )

    def put(self, out: Tensor, found: Tensor) -> None:
        """Write what the tokens read (B H, T, V) where it belongs (B, S, H V)."""
        place = _heads(out[:, self.start : self.stop], self.of.mixer.value_heads)
        place.copy_(_rows(found, len(out)))

    def take(self, grad: Tensor) -> Tensor:
        """Return the part (B H, T, V) of a gradient (B, S, H V) that is the tokens'."""
        part = grad[:, self.start : self.stop]
        return self._by_head(_heads(part, self.of.mixer.value_heads))

    def go_back(self, grads: Tokens, found: Found) -> None:
        """Add to what is found the gradients that come through the tokens."""
        self._rates_back(grads.decay, found)
        beta = self._of_heads(self.of.b[:, self.start : self.stop]).sigmoid_()
        grad = grads.beta.mul_(beta).mul_(beta.neg_().add_(1))
        found.b[:, self.start : self.stop].copy_(_rows(grad, len(found.b)))
        del beta, grad
        y = self.of.convolution.output(self.start, self.stop)
        gate = torch.sigmoid(y)
        slope = (y * (1 - gate)).add_(1).mul_(gate)
        q, k, v = self._parts(y.mul_(gate))
        del gate
        self._unit_back(q, grads.q.mul_(self.of.mixer.key_dim**-0.5))
        self._unit_back(k, grads.k)
        v.copy_(_rows(grads.v, len(y)))
        del q, k, v
        y.mul_(slope)
        del slope
        taps_grad = found.conv[:, 0].T
        self.of.convolution.go_back(y, self.start, self.stop, found.x, taps_grad)

    # parts of it

    def _parts(self, y: Tensor) -> list[Tensor]:
        """Return queries and keys (B, T, G, K) and values (B, T, H, V), views of y."""
        mixer = self.of.mixer
        parts = torch.split(y, [mixer.keys, mixer.keys, mixer.values], -1)
        heads = (mixer.key_heads, mixer.key_heads, mixer.value_heads)
        return [_heads(part, count) for part, count in zip(parts, heads, strict=True)]

    def _by_head(self, x: Tensor) -> Tensor:
        """Return x (B, T, heads, ...) as (B H, T, ...) in float32, heads of keys for each of theirs."""
        heads = self.of.mixer.value_heads
        rows, count, given, size = x.shape
        out = x.new_empty((rows * heads, count, size), dtype=self.of.dtype)
        shared = out.view(rows, given, heads // given, count, size)
        shared.copy_(x.transpose(1, 2)[:, :, None].expand_as(shared))
        return out

    def _unit(self, x: Tensor) -> Tensor:
        """Return x (B, T, G, K) by heads, of length one."""
        inverse = x.square().sum(-1, keepdim=True).add_(LEAST).rsqrt_()
        return self._by_head(x).mul_(self._by_head(inverse))

    def _unit_back(self, x: Tensor, grad: Tensor) -> None:
        """Put the gradient of x in its place, for that (B H, T, K) of what :meth:`_unit` returned."""
        inverse = x.square().sum(-1, keepdim=True).add_(LEAST).rsqrt_()
        heads = grad.view(len(x), x.shape[2], -1, *grad.shape[1:])  # (B, G, H / G, T, K)
        own = heads.sum(2).transpose(1, 2)
        x.mul_(inverse)
        along = (x * own).sum(-1, keepdim=True)
        x.mul_(along.neg_()).add_(own).mul_(inverse)

    def _of_heads(self, x: Tensor) -> Tensor:
        """Return numbers (B, T, H) as (B H, T) in float32."""
        return self._by_head(x[..., None])[..., 0]

    def _rates(self) -> Tensor:
        """Return the logarithms (B H, T) of what each token leaves of the state."""
        return F.softplus(self._steps()).mul_(self._speed())

    def _rates_back(self, decay_grad: Tensor, found: Found) -> None:
        """Add the gradients of what the rates are made of, for that of their sums."""
        grad = decay_grad.flip(-1).cumsum(-1).flip(-1)
        rows = len(found.a)
        found.a_log += _rows(grad * self._rates(), rows).sum((0, 1))
        grad.mul_(self._speed()).mul_(self._steps().sigmoid_())
        found.dt_bias += _rows(grad, rows).sum((0, 1))
        found.a[:, self.start : self.stop].copy_(_rows(grad, rows))

    def _steps(self) -> Tensor:
        """Return a with its bias, (B H, T)."""
        bias = self.of.own.dt_bias.to(self.of.dtype)
        return self._of_heads(self.of.a[:, self.start : self.stop]).add_(
            bias.repeat(len(self.of.x))[:, None]
        )

    def _speed(self) -> Tensor:
        """Return minus the exponential of ``A_log`` for each head (B H, 1)."""
        speed = self.of.own.a_log.to(self.of.dtype).exp().neg_()
        return speed.repeat(len(self.of.x))[:, None]


def _heads(x: Tensor, count: int) -> Tensor:
    """Return x (B, T, heads width) as (B, T, heads, width)."""
    return x.view(*x.shape[:2], count, -1)


def _rows(x: Tensor, rows: int) -> Tensor:
    """Return x (B H, T, ...) as (B, T, H, ...)."""
    return x.view(rows, -1, *x.shape[1:]).transpose(1, 2)
