"""The gated delta rule over some tokens at once, and its way back (Yang et al. 2024, 2412.06464).

A head has a state S (K, V). Each token lets it decay, ``S' = exp(g) S``, corrects what it says to
the token's key, ``S = S' + k n^T`` with ``n = beta (v - S'^T k)``, and reads it: ``S^T q``. The
corrections n of T tokens solve a triangular system, and everything else is products of matrices.
N heads of all rows, T tokens, K channels of a key, V of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the rule reads of T tokens: q, k (N, T, K), v (N, T, V), beta and decay (N, T).

    ``decay`` is the sum of the logarithms g up to each token.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    decay: Tensor


@dataclass(frozen=True, slots=True)
class Reach:
    """What tokens can see where rows hold several documents; shapes broadcast with (N, T, ...).

    ``start``: which tokens see the state before them, ``end``: which are seen by the state behind,
    ``through``: whether that still has the former, ``hidden`` (N, T, T): which never see which.
    """

    start: Tensor
    end: Tensor
    through: Tensor
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class _Factors:
    """By how much decays what a token reads of others, and of the state before; what is kept."""

    pairs: Tensor  # (N, T, T)
    start: Tensor  # (N, T, 1)
    end: Tensor  # (N, T, 1)
    through: Tensor  # (N, 1, 1)


def advance(tokens: Tokens, state: Tensor, reach: Reach | None) -> tuple[Tensor, Tensor]:
    """Return what the tokens read (N, T, V), and the state (N, K, V) behind them."""
    factors = _factors(tokens.decay, reach)
    new = _corrections(tokens, state, factors)
    out = torch.bmm(tokens.q, state).mul_(factors.start)
    out.baddbmm_(torch.bmm(tokens.q, tokens.k.mT).mul_(factors.pairs), new)
    return out, _behind(tokens, state, factors, new)


def state_behind(tokens: Tokens, state: Tensor, reach: Reach | None) -> Tensor:
    """Return the state (N, K, V) behind the tokens alone."""
    factors = _factors(tokens.decay, reach)
    return _behind(tokens, state, factors, _corrections(tokens, state, factors))


def go_back(
    tokens: Tokens, state: Tensor, reach: Reach | None, out_grad: Tensor, state_grad: Tensor
) -> tuple[Tokens, Tensor]:
    """Return the gradients of the tokens and of the state before, for those of :func:`advance`."""
    q, k, beta = tokens.q, tokens.k, tokens.beta[..., None]
    factors = _factors(tokens.decay, reach)
    pairs, new = factors.pairs, _corrections(tokens, state, factors)
    alike = torch.bmm(k, k.mT).mul_(pairs)
    read = torch.bmm(q, k.mT).mul_(pairs)
    kept = k * factors.end
    new_grad = torch.bmm(read.mT, out_grad).baddbmm_(kept, state_grad)
    system = (alike * beta).mT
    solved = torch.linalg.solve_triangular(system, new_grad, upper=True, unitriangular=True)
    del system, new_grad, kept
    read_grad = torch.bmm(out_grad, new.mT)
    system_grad = torch.bmm(solved, new.mT).neg_().tril_(-1)
    decay_grad, beta_grad = _sums(read, read_grad, alike, system_grad, beta)
    del read, alike
    read_grad.mul_(pairs)
    system_grad.mul_(pairs).mul_(beta)
    q_grad = torch.bmm(read_grad, k)
    k_grad = torch.bmm(read_grad.mT, q)
    del read_grad
    k_grad.baddbmm_(system_grad, k).baddbmm_(system_grad.mT, k)
    del system_grad
    through_end = torch.bmm(new, state_grad.mT).mul_(factors.end)
    k_grad += through_end
    late = through_end.mul_(k).sum(-1)
    del through_end
    heard = torch.bmm(k, state)
    beta_grad += ((tokens.v - heard * factors.start).mul_(solved)).sum(-1)
    v_grad = solved.mul_(beta)
    from_state = out_grad * factors.start
    to_state = v_grad * factors.start
    decay_grad += torch.bmm(q, state).mul_(from_state).sum(-1)
    decay_grad -= heard.mul_(to_state).sum(-1)
    del heard
    q_grad.baddbmm_(from_state, state.mT)
    k_grad.baddbmm_(to_state, state.mT, alpha=-1)
    whole = (state_grad * state).mul_(factors.through).sum((-1, -2))
    before = state_grad * factors.through
    before.baddbmm_(q.mT, from_state).baddbmm_(k.mT, to_state, alpha=-1)
    decay_grad -= late
    decay_grad[:, -1] += late.sum(-1).add_(whole)
    return Tokens(q_grad, k_grad, v_grad, beta_grad, decay_grad), before


def _factors(decay: Tensor, reach: Reach | None) -> _Factors:
    count = decay.shape[1]
    pairs = decay[:, :, None] - decay[:, None]
    later = torch.ones(count, count, dtype=torch.bool, device=decay.device).triu_(1)
    pairs.masked_fill_(later, float("-inf"))
    if reach is not None:
        pairs.masked_fill_(reach.hidden, float("-inf"))
    start, end = decay.exp(), (decay[:, -1:] - decay).exp_()
    through = start[:, -1:].clone()
    if reach is not None:
        start *= reach.start
        end *= reach.end
        through *= reach.through
    return _Factors(pairs.exp_(), start[..., None], end[..., None], through[..., None])


def _corrections(tokens: Tokens, state: Tensor, factors: _Factors) -> Tensor:
    """Return what each token adds to what the state says to its key (N, T, V)."""
    beta = tokens.beta[..., None]
    missing = tokens.v - torch.bmm(tokens.k, state).mul_(factors.start)
    missing *= beta
    system = torch.bmm(tokens.k, tokens.k.mT).mul_(factors.pairs).mul_(beta)
    found: Tensor = torch.linalg.solve_triangular(system, missing, upper=False, unitriangular=True)
    return found


def _behind(tokens: Tokens, state: Tensor, factors: _Factors, new: Tensor) -> Tensor:
    kept = tokens.k * factors.end
    return (state * factors.through).baddbmm_(kept.mT, new)


def _sums(
    read: Tensor, read_grad: Tensor, alike: Tensor, system_grad: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients (N, T) of decay and beta that come through pairs of tokens."""
    both = alike * system_grad
    beta_grad = both.sum(-1)
    both.mul_(beta).addcmul_(read, read_grad)
    return both.sum(-1).sub_(both.sum(-2)), beta_grad
