"""Mamba-2's mixer between its projections: a convolution, and a recurrence over what it makes.

A few pieces of tokens at a time, in float32, rounded once; nothing but the inputs is saved, and
the states between those spans are made again on the way back. B rows, S positions, N tokens of a
span, P pieces of T tokens, H heads, G groups of R heads, K channels of a key, V of a value, C = H
V + 2 G K channels that are convolved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetune.mixer import PIECE, SPAN
from edgetune.network.mixers.state_space import StateSpace
from edgetune_torch import scan
from edgetune_torch.convolution import taps_of
from edgetune_torch.documents import Documents
from edgetune_torch.piece_convolution import PieceConvolution, document_numbers
from edgetune_torch.scan import Reach, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """The mixer's own tensors: of the convolution (C, 1, taps) and (C), and numbers by head (H)."""

    conv: Tensor
    conv_bias: Tensor | None
    a_log: Tensor
    dt_bias: Tensor
    skip: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Parameters:
        """Take those that there are, by their roles."""
        return cls(
            conv=tensors["conv"],
            conv_bias=tensors.get("conv_bias"),
            a_log=tensors["a_log"],
            dt_bias=tensors["dt_bias"],
            skip=tensors["skip"],
        )

    def each(self) -> tuple[Tensor | None, ...]:
        """Return them in their order."""
        return tuple(getattr(self, field.name) for field in fields(self))


class Scan(torch.autograd.Function):
    """Saves its inputs. The first ``skipped`` tokens are convolved alone: the state is behind them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, steps: Tensor, conv: Tensor, conv_bias: Tensor | None, a_log: Tensor,
        dt_bias: Tensor, skip: Tensor, state: Tensor | None, mixer: StateSpace,
        documents: Documents, skipped: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return what is read (B, S, H V) of x (B, S, C) and steps (B, S, H), and the state behind it."""
        ctx.save_for_backward(x, steps, conv, conv_bias, a_log, dt_bias, skip, state)
        ctx.mixer, ctx.documents, ctx.skipped = mixer, documents, skipped
        ctx.set_materialize_grads(False)  # where nobody reads the state behind it
        own = Parameters(conv=conv, conv_bias=conv_bias, a_log=a_log, dt_bias=dt_bias, skip=skip)
        out = x.new_empty(*x.shape[:2], mixer.values)
        out[:, :skipped] = 0
        state = _empty_state(x, mixer) if state is None else state
        for span in Spans(x, steps, own, mixer, documents, skipped):
            state = span.advance(out[:, skipped:], state)
        return out, state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs, and of trained tensors."""
        x, steps, *tensors, before = ctx.saved_tensors
        names = [field.name for field in fields(Parameters)]
        own, mixer = Parameters(**dict(zip(names, tensors, strict=True))), ctx.mixer
        spans = list(Spans(x, steps, own, mixer, ctx.documents, ctx.skipped))
        states = [_empty_state(x, mixer) if before is None else before]
        for span in spans[:-1]:
            states.append(span.state_behind(states[-1]))
        found, (grad, state_grad) = Found.of(x, steps, own), grads
        state_grad = torch.zeros_like(states[0]) if state_grad is None else state_grad
        here = found.behind(ctx.skipped)
        for span in reversed(spans):
            state_grad = span.go_back(grad[:, ctx.skipped :], states.pop(), state_grad, here)
        of_inputs = found.of_inputs(ctx.needs_input_grad, spans[0].of.channels)
        return *of_inputs, None if before is None else state_grad, None, None, None


@dataclass(slots=True)
class Found:
    """Gradients that grow span by span, in float32 where they are sums; of the taps (taps, C)."""

    x: Tensor
    steps: Tensor
    taps: Tensor
    conv_bias: Tensor
    a_log: Tensor
    dt_bias: Tensor
    skip: Tensor

    @classmethod
    def of(cls, x: Tensor, steps: Tensor, own: Parameters) -> Found:
        """Return zeros; what precedes a span is added to, and so x's are wide."""
        wide = torch.promote_types(x.dtype, torch.float32)
        taps = torch.zeros_like(own.conv[:, 0].T, dtype=wide)
        channels = torch.zeros_like(own.conv[:, 0, 0], dtype=wide)
        heads = (torch.zeros_like(x, dtype=wide) for x in (own.a_log, own.dt_bias, own.skip))
        return cls(
            torch.zeros_like(x, dtype=wide), torch.zeros_like(steps), taps, channels, *heads
        )  # fmt: skip

    def behind(self, skipped: int) -> Found:
        """Return the same of steps behind the first tokens."""
        return replace(self, steps=self.steps[:, skipped:])

    def of_inputs(
        self, wanted: tuple[bool, ...], channels: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of the inputs, those that are wanted.

        ``channels`` (C) are what the taps were multiplied by.
        """
        taps = self.taps if channels is None else self.taps.mul_(channels)
        x, conv = self.x.to(self.steps.dtype), taps.T[:, None]
        found = (x, self.steps, conv, self.conv_bias, self.a_log, self.dt_bias, self.skip)
        return tuple(each if want else None for each, want in zip(found, wanted, strict=False))


def mixed(
    mixer: StateSpace, inputs: Sequence[Tensor], own: Mapping[str, Tensor], documents: Documents
) -> Tensor:
    """Return what is read (B, S, H V) of x (B, S, C) and steps (B, S, H)."""
    return mixed_in_tile(mixer, inputs, own, documents, None, 0)[0]


def mixed_in_tile(
    mixer: StateSpace, inputs: Sequence[Tensor], own: Mapping[str, Tensor], documents: Documents,
    state: Tensor | None, skipped: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what is read of a tile, and the state (B, G, K, R, V) behind it for the one before it.

    The first ``skipped`` tokens were read before: the next ones are convolved with them. Nothing is
    read of them again (zeros).
    """
    found: tuple[Tensor, Tensor] = Scan.apply(  # type: ignore[no-untyped-call]
        *inputs, *Parameters.of(own).each(), state, mixer, documents, skipped
    )
    return found


def mixed_after(
    mixer: StateSpace,
    inputs: Sequence[Tensor],
    own: Mapping[str, Tensor],
    before: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the same of the next tokens of one document, and what its next ones need.

    ``before`` are the last inputs (1, taps - 1, C) and the state, as this returned them.
    """
    (x, steps), kept = inputs, mixer.taps - 1
    last = x.new_zeros(1, kept, x.shape[2]) if before is None else before[0]
    state = _empty_state(x, mixer) if before is None else before[1]
    out = x.new_empty(*x.shape[:2], mixer.values)
    whole, steps = torch.cat((last, x), 1), F.pad(steps, (0, 0, kept, 0))
    for span in Spans(whole, steps, Parameters.of(own), mixer, (), kept):
        state = span.advance(out, state)
    return out, (whole[:, whole.shape[1] - kept :].clone(), state)


def _channels(mixer: StateSpace, taps: Tensor) -> Tensor:
    """Return what each channel is multiplied by before it is convolved (C)."""
    parts = [taps.new_full((count,), factor) for factor, count in mixer.channel_multipliers]
    return torch.cat(parts)


def _empty_state(x: Tensor, mixer: StateSpace) -> Tensor:
    """Return the state (B, G, K, R, V) of the beginning."""
    wide = torch.promote_types(x.dtype, torch.float32)
    size = (len(x), mixer.groups, mixer.key_dim, mixer.heads // mixer.groups, mixer.value_dim)
    return x.new_zeros(size, dtype=wide)


class Spans:
    """The spans of rows, from the first on."""

    def __init__(
        self, x: Tensor, steps: Tensor, own: Parameters, mixer: StateSpace,
        documents: Documents, skipped: int = 0,
    ) -> None:  # fmt: skip
        """Begin with both at ``skipped``."""
        self.steps, self.own, self.mixer, self.skipped = steps[:, skipped:], own, mixer, skipped
        taps = taps_of(own.conv)
        self.dtype = taps.dtype
        self.channels = _channels(mixer, taps) if mixer.multipliers else None
        if self.channels is not None:  # which a convolution goes with
            taps = taps * self.channels
        self.factor = mixer.multipliers[-1] if mixer.multipliers else 1.0
        filled = -(-self.steps.shape[1] // PIECE) * PIECE
        self.documents = document_numbers(documents, x, skipped + filled)
        self.convolution = PieceConvolution(x, taps, self.documents, skipped)

    def __iter__(self) -> Iterator[Span]:
        """Yield the spans."""
        count = self.steps.shape[1]
        for start, stop in pairwise([*range(0, count, SPAN), count]):
            yield Span(self, start, stop, -(-(stop - start) // PIECE))


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens from ``start`` to ``stop`` of all rows, in pieces.

    Where several pieces are not full, zeros are behind their tokens, with steps of zero: they
    change no state.
    """

    of: Spans
    start: int
    stop: int
    pieces: int

    @property
    def count(self) -> int:
        """Tokens, with those that fill the last piece."""
        return self.stop - self.start if self.pieces == 1 else self.pieces * PIECE

    def advance(self, out: Tensor, state: Tensor) -> Tensor:
        """Write what the tokens read to their places in out (B, S, H V); return the state behind."""
        y = F.silu(self._convolved(), inplace=True)
        read, behind = scan.advance(self._tokens(y, self._steps()), state, self._reach())
        skip = self.of.own.skip.to(self.of.dtype).view(self.of.mixer.groups, -1, 1)
        by_token = self._by_token(read)
        by_token.addcmul_(self._values(y), skip)
        place = out[:, self.start : self.stop]
        place.copy_(by_token.reshape(len(out), self.count, -1)[:, : self.stop - self.start])
        return behind

    def state_behind(self, state: Tensor) -> Tensor:
        """Return the state behind the tokens."""
        y = F.silu(self._convolved(), inplace=True)
        return scan.state_behind(self._tokens(y, self._steps()), state, self._reach())

    def go_back(self, grad: Tensor, state: Tensor, state_grad: Tensor, found: Found) -> Tensor:
        """Add to what is found what comes of the gradient (B, S, H V) of what the tokens read.

        Returns the gradient of the state before, for that of the state behind.
        """
        y, steps = self._convolved(), self._steps()
        gate = torch.sigmoid(y)
        slope = (y * (1 - gate)).add_(1).mul_(gate)
        y.mul_(gate)
        del gate
        read = self._read_grad(grad)
        tokens = self._tokens(y, steps)
        grads, before = scan.go_back(tokens, state, self._reach(), read, state_grad)
        del tokens
        steps_grad = self._back_to_convolved(y, steps, self._by_token(read), grads, found)
        del read
        self._back_to_steps(steps, steps_grad, grads.decay, found)
        del grads
        y.mul_(slope)
        del slope
        own = y[:, : self.stop - self.start]
        found.conv_bias += own.sum((0, 1))
        self.of.convolution.go_back(own, self.start, self.stop, found.x, found.taps)
        return before

    # parts of it

    def _convolved(self) -> Tensor:
        """Return the convolution (B, N, C) of the tokens, and of zeros behind them."""
        y = self.of.convolution.output(self.start, self.start + self.count)
        bias = self.of.own.conv_bias
        return y if bias is None else y.add_(bias)

    def _tokens(self, y: Tensor, steps: Tensor) -> Tokens:
        """Return what is read of y (B, N, C) and steps (B, N, H)."""
        mixer = self.of.mixer
        k, q = (y[..., at : at + mixer.keys] for at in (mixer.values, mixer.values + mixer.keys))
        v = self._by_piece(y[..., : mixer.values], mixer.value_dim) * self._by_piece(steps, 1)
        decay = self._by_piece(steps * self._speed(), 1)[..., 0].transpose(1, 2).cumsum(-1)
        return Tokens(self._of_groups(q), self._of_groups(k), v, decay)

    def _steps(self) -> Tensor:
        """Return how far each token's step goes (B, N, H); those that fill a piece have none."""
        mixer, wide = self.of.mixer, self._raw_steps()
        steps = F.softplus(wide).clamp_(mixer.least_step, mixer.most_step)
        return self._filled(steps)

    def _raw_steps(self) -> Tensor:
        own = self.of.steps[:, self.start : self.stop].to(self.of.dtype)
        return torch.add(self.of.own.dt_bias, own, alpha=self.of.factor)

    def _speed(self) -> Tensor:
        """Return minus the exponential of ``A_log`` for each head (H)."""
        return self.of.own.a_log.to(self.of.dtype).exp().neg_()

    def _filled(self, x: Tensor) -> Tensor:
        """Return x (B, tokens, H) with zeros behind them."""
        missing = self.count - x.shape[1]
        return F.pad(x, (0, 0, 0, missing)) if missing else x

    def _reach(self) -> Reach | None:
        """Return what the tokens can see, if rows hold several documents."""
        if self.of.documents is None:
            return None
        start, rows = self.of.skipped + self.start, len(self.of.documents)
        numbers = self.of.documents[:, start : start + self.count].view(rows, self.pieces, -1)
        before = self.of.documents[:, max(0, start - 1)][:, None]
        before = torch.cat((before, numbers[:, :-1, -1]), 1)[..., None]  # (B, P, 1)
        last = numbers[..., -1:]

        def by_group(seen: Tensor) -> Tensor:
            """Return (M, 1, ...) of (B, P, ...)."""
            return seen.flatten(0, 1).repeat_interleave(self.of.mixer.groups, 0)[:, None]

        return Reach(
            start=by_group(numbers == before),
            end=by_group(numbers == last),
            through=by_group(before == last),
            hidden=by_group(numbers[..., None] != numbers[..., None, :]),
        )

    def _read_grad(self, grad: Tensor) -> Tensor:
        """Return the part (M, T, R, V) of a gradient (B, S, H V) that is the tokens'."""
        own = grad[:, self.start : self.stop].to(self.of.dtype)
        return self._by_piece(self._filled(own), self.of.mixer.value_dim)

    def _back_to_convolved(
        self, y: Tensor, steps: Tensor, read: Tensor, grads: Tokens, found: Found
    ) -> Tensor:
        """Put the gradient of y (B, N, C) in its place; return that of steps (B, N, H).

        ``read`` (B, P, T, G, R, V) is the gradient of what was read.
        """
        mixer, own = self.of.mixer, self.of.own
        values, v_grad = self._values(y), self._by_token(grads.v)
        skip = own.skip.to(self.of.dtype).view(mixer.groups, -1, 1)
        found.skip += (read * values).sum((0, 1, 2, 5)).flatten()
        steps_grad = (v_grad * values).sum(-1).reshape(steps.shape)
        values.copy_(v_grad).mul_(steps.view(*values.shape[:-1], 1)).addcmul_(read, skip)
        for at, each in ((0, grads.k), (1, grads.q)):
            first = mixer.values + at * mixer.keys
            place = y[..., first : first + mixer.keys]
            self._grouped(place).copy_(self._by_token(each))
        return steps_grad

    def _back_to_steps(self, steps: Tensor, grad: Tensor, decay_grad: Tensor, found: Found) -> None:
        """Add what comes through the steps (B, N, H), for their gradient and that of the decay."""
        mixer, count = self.of.mixer, self.stop - self.start
        sums = decay_grad.flip(-1).cumsum(-1).flip(-1)  # (M, R, T)
        rates = self._by_token(sums.transpose(1, 2)).reshape(steps.shape)
        rates *= self._speed()
        found.a_log += (rates * steps).sum((0, 1))
        raw = self._raw_steps()
        free = F.softplus(raw)
        within = (free >= mixer.least_step) & (free <= mixer.most_step)
        grad = grad.add_(rates)[:, :count].mul_(within).mul_(raw.sigmoid_())
        found.dt_bias += grad.sum((0, 1))
        found.steps[:, self.start : self.stop].copy_(grad.mul_(self.of.factor))

    def _values(self, y: Tensor) -> Tensor:
        """Return the values (B, P, T, G, R, V) in y (B, N, C)."""
        mixer = self.of.mixer
        by_group = self._grouped(y[..., : mixer.values])
        return by_group.view(*by_group.shape[:-1], -1, mixer.value_dim)

    def _grouped(self, x: Tensor) -> Tensor:
        """Return x (B, N, G K) as (B, P, T, G, K), a view."""
        return x.view(
            len(x), self.pieces, -1, self.of.mixer.groups, x.shape[-1] // self.of.mixer.groups
        )

    def _of_groups(self, x: Tensor) -> Tensor:
        """Return x (B, N, G K) as (M, T, K)."""
        return self._grouped(x).transpose(2, 3).flatten(0, 2)

    def _by_piece(self, x: Tensor, size: int) -> Tensor:
        """Return x (B, N, H size) as (M, T, R, size), its numbers next to each other."""
        by_group = self._of_groups(x)
        return by_group.view(*by_group.shape[:-1], -1, size).contiguous()

    def _by_token(self, x: Tensor) -> Tensor:
        """Return x (M, T, ...) as (B, P, T, G, ...)."""
        rows = x.view(-1, self.pieces, self.of.mixer.groups, *x.shape[1:])
        return rows.transpose(2, 3)
