"""Mamba-2's recurrence over some pieces of tokens at once, and its way back.

A head has a state S (K, V). Each token lets it decay and adds to it, ``S = exp(g) S + k v^T``, and
reads it: ``S^T q``. Within a piece that is attention without a softmax, whose scores decay with
the distance; between pieces only states travel (Dao & Gu 2024, 2405.21060, section 6).

M groups of heads in all pieces of all rows, R heads of a group, which share its queries and keys,
T tokens of a piece, K channels of a key, V of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """What is read of the tokens: q, k (M, T, K), v (M, T, R, V) and decay (M, R, T).

    ``decay`` is the sum of the logarithms g up to each token of a piece. M is (rows, pieces,
    groups).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor


@dataclass(frozen=True, slots=True)
class Reach:
    """What tokens can see where rows hold several documents; shapes broadcast with (M, R, T, ...).

    ``start`` and ``end`` (M, 1, T), ``through`` (M, 1, 1) and ``hidden`` (M, 1, T, T) are what
    :class:`edgetune_torch.delta_rule.Reach` has by these names.
    """

    start: Tensor
    end: Tensor
    through: Tensor
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class _Factors:
    """By how much decays what a token reads of the state before; what is kept of it, and of that."""

    start: Tensor  # (M, T, R, 1)
    end: Tensor  # (M, T, R, 1)
    through: Tensor  # (M, R, 1)


def advance(tokens: Tokens, state: Tensor, reach: Reach | None) -> tuple[Tensor, Tensor]:
    """Return what the tokens read (M, T, R, V), and the state (B, G, K, R, V) behind them."""
    factors = _factors(tokens.decay, reach)
    before, behind = _states(tokens, factors, state)
    out = torch.bmm(tokens.q, before).view_as(tokens.v).mul_(factors.start)
    del before, factors
    read = _pairs(tokens.decay, reach).mul_(_scores(tokens))
    out += torch.matmul(read, tokens.v.transpose(1, 2)).transpose(1, 2)
    return out, behind


def state_behind(tokens: Tokens, state: Tensor, reach: Reach | None) -> Tensor:
    """Return the state (B, G, K, R, V) behind the tokens alone."""
    return _states(tokens, _factors(tokens.decay, reach), state)[1]


def go_back(
    tokens: Tokens, state: Tensor, reach: Reach | None, out_grad: Tensor, state_grad: Tensor
) -> tuple[Tokens, Tensor]:
    """Return the gradients of the tokens and of the state before, for those of :func:`advance`."""
    q, k, v = tokens.q, tokens.k, tokens.v
    q_grad, k_grad, v_grad, decay_grad = _back_within(tokens, reach, out_grad)
    factors = _factors(tokens.decay, reach)
    from_state = out_grad * factors.start
    behind, before_grad = _carried(
        torch.bmm(q.mT, from_state.flatten(2)), factors.through, state_grad, back=True
    )
    heard = torch.bmm(k, behind).view_as(v).mul_(factors.end)
    late = (heard * v).sum(-1).transpose(1, 2)  # (M, R, T)
    v_grad += heard
    del heard
    k_grad.baddbmm_((v * factors.end).flatten(2), behind.mT)
    before = _states(tokens, factors, state)[0]
    q_grad.baddbmm_(from_state.flatten(2), before.mT)
    early = torch.bmm(q, before).view_as(v).mul_(from_state).sum(-1).transpose(1, 2)
    del from_state
    whole = before.mul_(behind).view(len(v), -1, *v.shape[2:]).sum((1, 3))  # (M, R)
    decay_grad += early
    decay_grad -= late
    decay_grad[..., -1] += late.sum(-1).addcmul_(whole, factors.through[..., 0])
    return Tokens(q_grad, k_grad, v_grad, decay_grad), before_grad


def _back_within(
    tokens: Tokens, reach: Reach | None, out_grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and decay that come through pairs of tokens."""
    pairs = _pairs(tokens.decay, reach)
    grad = out_grad.transpose(1, 2)  # (M, R, T, V)
    scores_grad = torch.matmul(grad, tokens.v.permute(0, 2, 3, 1))  # (M, R, T, T)
    scores_grad *= pairs
    read = pairs.mul_(_scores(tokens))
    v_grad = torch.matmul(read.mT, grad).transpose(1, 2).contiguous()
    del pairs, read
    of_scores = scores_grad.sum(1)
    both = scores_grad.mul_(_scores(tokens)).tril_(-1)
    decay_grad = both.sum(-1).sub_(both.sum(-2))
    del both, scores_grad
    q_grad = torch.bmm(of_scores, tokens.k)
    k_grad = torch.bmm(of_scores.mT, tokens.q)
    return q_grad, k_grad, v_grad, decay_grad


def _scores(tokens: Tokens) -> Tensor:
    """Return the products of queries and keys (M, 1, T, T)."""
    return torch.bmm(tokens.q, tokens.k.mT)[:, None]


def _states(tokens: Tokens, factors: _Factors, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states (M, K, R V) before each piece, and the one behind all."""
    added = torch.bmm(tokens.k.mT, (tokens.v * factors.end).flatten(2))
    return _carried(added, factors.through, state)


def _carried(
    added: Tensor, through: Tensor, state: Tensor, *, back: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what arrives at each piece, in the place of what it adds, and what leaves the last.

    ``added`` (M, K, R V) are numbers of states, or of their gradients, which go ``back``.
    """
    rows, groups, keys, heads, values = state.shape
    by_piece = added.view(rows, -1, groups, keys, heads, values)
    kept = through.view(rows, -1, groups, 1, heads, 1)
    pieces = range(by_piece.shape[1])
    for piece in reversed(pieces) if back else pieces:
        left = (state * kept[:, piece]).add_(by_piece[:, piece])
        by_piece[:, piece].copy_(state)
        state = left
    return added, state


def _pairs(decay: Tensor, reach: Reach | None) -> Tensor:
    """Return by how much decays what a token reads of others (M, R, T, T)."""
    count = decay.shape[-1]
    pairs = decay[..., None] - decay[..., None, :]
    later = torch.ones(count, count, dtype=torch.bool, device=decay.device).triu_(1)
    pairs.masked_fill_(later, float("-inf"))
    if reach is not None:
        pairs.masked_fill_(reach.hidden, float("-inf"))
    return pairs.exp_()


def _factors(decay: Tensor, reach: Reach | None) -> _Factors:
    start, end = decay.exp(), (decay[..., -1:] - decay).exp_()
    through = start[..., -1:].clone()
    if reach is not None:
        start *= reach.start
        end *= reach.end
        through *= reach.through
    return _Factors(start.transpose(1, 2)[..., None], end.transpose(1, 2)[..., None], through)
