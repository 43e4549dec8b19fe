"""The operations that a forward pass is written in; every interpreter of it implements them.

B rows, S positions, D hidden size, H heads, G key/value heads, K keys, h channels of a head.
An array is whatever an interpreter computes with: a tensor of a framework, or only its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from edgetune.altup import AltUp
from edgetune.mixer import Recurrent
from edgetune.shape import Attention, Experts, Rotary

A = TypeVar("A")

Key = tuple[int, str]
"""Layer and role of a projection."""


@dataclass(frozen=True, slots=True)
class Dropout:
    """Inverted dropout of a fraction of the elements; its mask is a function of ``seed``.

    The mask is drawn again where it is needed instead of being kept. ``seed`` has 64 bits. ``start``
    is the position of the first token, where a row is not computed as a whole.
    """

    fraction: float
    seed: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class KeptNorms(Generic[A]):
    """Row norms that an engine may keep: squares of frozen rows for good, the rest for a pass."""

    squares: dict[Key, A] = field(default_factory=dict)
    norms: dict[Key, A] = field(default_factory=dict)

    def anew(self) -> KeptNorms[A]:
        """Return what is still true after the trained tensors have changed."""
        return KeptNorms(self.squares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended(Generic[A]):
    """The attention of one layer, about to be computed.

    ``q`` (B, H, S, h), ``k`` and ``v`` (B, G, K, h) are rotated and normalised. ``keys`` says
    which keys a query sees, in the interpreter's own way.
    """

    q: A
    k: A
    v: A
    rule: Attention
    keys: Any
    sinks: A | None = None
    """Scores (H,) of a key that all queries see, and whose value is zero."""

    def with_keys(self, k: A, v: A, keys: Any) -> Attended[A]:
        """Return the attention of the same queries to other keys."""
        return replace(self, k=k, v=v, keys=keys)


@dataclass(frozen=True, slots=True)
class ExpertUpdate(Generic[A]):
    """A low-rank update of a projection of all E experts, in PEFT's order.

    ``a`` (E R, inputs) has one expert's R rows after another's; ``b`` (outputs, R E) has for each
    component its column of every expert. If ``fixed``, a is a constant.
    """

    a: A
    b: A
    scale: float
    fixed: bool = False


ExpertUpdates = Mapping[str, ExpertUpdate[A]]
"""By role: ``gate_up`` for gate and up together, ``up`` where there is no gate, ``down``."""


class Ops(Protocol[A]):
    """The operations of one block in one pass; its weights and its tokens' positions are inside.

    ``role`` names a projection or a norm of the block. What is frozen is rounded as the model
    stores it; trained tensors come as float32 and are cast to the type of what they meet.
    """

    # what is frozen

    def embedding(self, tokens: A, scale: float, table: A | None = None) -> A:
        """Return the embeddings (B, S, D) of tokens (B, S), times ``scale`` as it is stored.

        They come from a trained ``table`` (V, D) where there is one.
        """

    def position_embedding(self) -> A:
        """Return the learned embeddings (B, S, D) of the tokens' positions."""

    def linear(self, role: str, x: A, *, bias: bool = True) -> A:
        """Return ``x W^T``, plus the bias if there is one and it is asked for."""

    def lora_linear(
        self, role: str, x: A, a: A, b: A, scale: float, dropout: Dropout | None,
        *, bias: bool = True, fixed: bool = False,
    ) -> A:  # fmt: skip
        """Return :meth:`linear` plus :meth:`low_rank`; if ``fixed``, a is a constant.

        Then x is not kept for the way back.
        """

    def bias(self, role: str, y: A) -> A:
        """Return ``y`` plus a projection's frozen bias, if it has one."""

    def norm(self, role: str, x: A, weight: A | None = None, bias: A | None = None) -> A:
        """Return x normalised over its last axis, with trained tensors in place of frozen ones."""

    def row_norms(self, key: Key, a: A, b: A, scale: float, kept: KeptNorms[A]) -> A:
        """Return the norms (outputs,) of the rows of ``W + scale b a``, as constants."""

    # a mixture of experts: T = B S tokens, k experts for each

    def route(self, x: A, rule: Experts) -> tuple[A, A]:
        """Return the weights (T, k) in float32 and the numbers (T, k) of the experts of x (B, S, D).

        Of equal scores that of the lower number counts as the higher one.
        """

    def shared(self, x: A, y: A) -> A:
        """Return y (B, S, D) times the sigmoid of the block's shared score of x (B, S, D)."""

    def experts(
        self, x: A, weights: A, chosen: A, rule: Experts, activation: str,
        updates: ExpertUpdates[A],
    ) -> A:  # fmt: skip
        """Return the sum (B, S, D) of what the chosen experts make of x, times their weights.

        Their projections are with ``updates``, those of them that have one.
        """

    # what tokens are to each other

    def rotate(self, x: A, rotary: Rotary) -> A:
        """Return x (B, heads, S, h) rotated by position."""

    def with_shared(self, k: A, shared: A) -> A:
        """Return k (B, H, S, n) with shared (B, 1, S, r) behind every head's: (B, H, S, n + r)."""

    def channels(self, x: A, size: int) -> A:
        """Return x (..., n) with zeros behind its channels, or without the last: (..., size)."""

    def keys(self, k: A, v: A) -> Any:
        """Return which keys the queries of this pass see, whose own are k and v (B, G, S, h).

        In a tile of a block these are left for the tiles after it, too.
        """

    def attend(self, attended: Attended[A], before: tuple[A, A] | None = None) -> A:
        """Return the output (B, H, S, h) of causal attention within documents.

        ``before`` are keys and values (1, G, P, h) in front of those of every document.
        """

    def sinks(self) -> A:
        """Return the frozen scores (H,) of keys whose values are zero."""

    def lend(self, k: A, v: A) -> None:
        """Keep k and v (B, G, S, h) for later blocks of this pass."""

    def lent(self, layer: int) -> tuple[A, A]:
        """Return the keys and values (B, G, S, h) that a block before this one has lent."""

    def per_layer_input(self) -> A:
        """Return the numbers (B, S, P) of its own that this block reads, constants."""

    def frozen_times(self, x: A, role: str) -> A:
        """Return x times a frozen tensor of the block, over the last axis."""

    # several streams (AltUp): N of D numbers, side by side

    def parted_streams(self, x: A, rule: AltUp) -> A:
        """Return the streams (B, S, N D) that x (B, S, D) begins as, all of its magnitude."""

    def joined_streams(self, x: A, rule: AltUp) -> A:
        """Return the mean (..., D) of streams (..., N D), brought to the magnitude of the first."""

    def predicted(self, x: A, routed: A) -> A:
        """Return streams x (B, S, N D) mixed by what the router says of ``routed`` (B, S, D)."""

    def corrected(self, x: A, made: A, routed: A) -> A:
        """Return streams x (B, S, N D) moved by how far ``made`` (B, S, D) is from the active one.

        How much of it each gets the router says of ``routed`` (B, S, D).
        """

    def added_behind(self, x: A, y: A) -> A:
        """Return streams x (B, S, N D) with y (B, S, D) added to all but the first."""

    def above(self, x: A, deviations: float) -> A:
        """Return ``max(x - (mean + deviations std), 0)`` over the last axis (Gemma 3n's sparsity)."""

    def some_heads(self, attended: Attended[A], heads: slice) -> Attended[A]:
        """Return the attention of some key/value heads and of the queries that read them."""

    def in_groups(self, attended: Attended[A], size: int, *, late: bool) -> Attended[A]:
        """Return attention within groups of ``size`` tokens of a document, in training.

        ``late`` groups begin half a group later, but for the first, which is as much longer.
        """

    def heads_together(self, parts: Sequence[A]) -> A:
        """Return outputs (B, heads, S, h) of attention as one, (B, H, S, h)."""

    def attend_all(self, q: A, k: A, v: A, scale: float) -> A:
        """Return the output (B, H, S, h) of attention to keys (1, G, P, h) that all see."""

    def cached_rows(self) -> int:
        """Return how many rows have a cache of keys and values; 0 outside generation."""

    def cached(self, row: int, attended: Attended[A]) -> Attended[A]:
        """Return one row's attention to what is cached of it too; its keys join the cache.

        The queries are without the padding behind them.
        """

    def filled(self, x: A, like: A) -> A:
        """Return x (B, H, s, h) with zeros behind, of as many positions as ``like`` (B, H, S, h)."""

    def first_pass(self) -> bool:
        """Return whether the caches were empty when this pass began."""

    def mix(self, mixer: Recurrent, inputs: Sequence[A], trained: Mapping[str, A]) -> A:
        """Return what a mixer that carries a state makes (B, S, ...) of ``inputs`` (B, S, ...).

        These are what its projections made. It begins anew with each document. What is ``trained``
        of its tensors, by their roles, stands in for the frozen ones.
        """

    # what is trained

    def low_rank(self, x: A, a: A, b: A, scale: float, dropout: Dropout | None) -> A:
        """Return ``scale dropout(x) a^T b^T`` for a (R, inputs) and b (outputs, R)."""

    def trained_linear(self, x: A, weight: A) -> A:
        """Return ``x weight^T``."""

    def add_bias(self, y: A, bias: A) -> A:
        """Return ``y + bias`` for a bias (outputs,)."""

    def times(self, x: A, vector: A) -> A:
        """Return ``x * vector`` over the last axis; any shape of the vector's elements will do."""

    def times_ratio(self, x: A, above: A, below: A) -> A:
        """Return ``x * (above / below)`` over the last axis, the ratio in float32."""

    def times_heads(self, x: A, vector: A) -> A:
        """Return x (B, H, S, h) with each head multiplied by its number, or all by one."""

    def replaced(self, x: A, prompt: A) -> A:
        """Return x (B, S, D) with ``prompt`` (P, D) at the first positions of every document."""

    def cast(self, trained: A) -> A:
        """Return a trained tensor in the type of activations."""

    # small tensors, in float32

    def float32_linear(self, x: A, weight: A, bias: A) -> A:
        """Return ``x weight^T + bias`` of trained tensors."""

    def tanh(self, x: A) -> A:
        """Return tanh of a trained tensor."""

    def some_rows(self, trained: A, rows: slice) -> A:
        """Return rows of a trained tensor."""

    def some_columns(self, trained: A, columns: slice) -> A:
        """Return columns of a trained tensor (rows, columns)."""

    def keys_values(self, flat: A, heads: int) -> tuple[A, A]:
        """Return k and v (1, G, P, h) in the type of activations, of flat (P, 2 G h)."""

    def scaled_matrix(self, rows: A, matrix: A, columns: A) -> A:
        """Return a constant matrix (N, R), its rows and columns times trained vectors."""

    def fastfood(
        self, vector: A, signs: A, order: A, gaussian: A, scale: A, size: tuple[int, int]
    ) -> A:
        """Return ``scale H (gaussian * (H (signs * vector))[order])`` as a matrix of ``size``.

        H is the Walsh-Hadamard matrix of a power of two, n: vector, signs and order are (n), gaussian
        is (M, n), and of the M n results those behind the matrix are left out. All but vector and
        scale (1) are constants.
        """

    # element by element, and views

    def activation(self, x: A, name: str) -> A:
        """Return the named activation of x; that of xIELU by the block's own frozen numbers."""

    def gated(self, gate: A, up: A, name: str) -> A:
        """Return ``activation(gate) * up``."""

    def add(self, x: A, y: A) -> A:
        """Return ``x + y``."""

    def subtract(self, x: A, y: A) -> A:
        """Return ``x - y``."""

    def scaled(self, x: A, factor: float) -> A:
        """Return ``factor x``."""

    def split(self, x: A, widths: Sequence[int]) -> Sequence[A]:
        """Return parts of the last axis."""

    def split_by_head(self, x: A, heads: int, widths: Sequence[int]) -> Sequence[A]:
        """Return the parts of each head, each kind flattened: (..., heads * width) of (..., all)."""

    def to_heads(self, x: A, size: int) -> A:
        """Return (B, S, heads, size) of (B, S, heads * size)."""

    def heads_first(self, x: A) -> A:
        """Return (B, heads, S, h) of (B, S, heads, h)."""

    def from_heads(self, x: A) -> A:
        """Return (B, S, heads * h) of (B, heads, S, h)."""

    # several adapters in one batch

    def rows(self, x: A, rows: slice) -> A:
        """Return some rows of x."""

    def attended_rows(self, attended: Attended[A], rows: slice) -> Attended[A]:
        """Return the attention of some rows."""

    def concatenated(self, parts: Sequence[A]) -> A:
        """Return the rows of all parts."""

    def of_rows(self, rows: slice) -> Ops[A]:
        """Return the operations of the same block on some rows."""

    def unpacked_once(self, role: str) -> Ops[A]:
        """Return the operations with a matrix that is unpacked once for several products."""
