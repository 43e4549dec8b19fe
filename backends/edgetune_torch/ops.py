"""The operations of :mod:`edgetune.network.ops` on tensors, with gradients.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgetune.altup import AltUp
from edgetune.mixer import Recurrent
from edgetune.network.ops import Attended, Dropout, ExpertUpdates, KeptNorms, Key
from edgetune.shape import Experts, ModelShape, Rotary
from edgetune_torch import (
    altup,
    attention,
    experts,
    fastfood,
    latent,
    linear,
    mixers,
    pointwise,
    routing,
    trained,
    xielu,
)
from edgetune_torch.attention import Keys
from edgetune_torch.documents import grouped
from edgetune_torch.expert_updates import Update
from edgetune_torch.load import Weights
from edgetune_torch.matrices import unpacked_once
from edgetune_torch.precision import product_dtype
from edgetune_torch.row_norms import row_norms
from edgetune_torch.token_layout import TokenLayout
from edgetune_torch.weights import BlockWeights


@dataclass(frozen=True, slots=True)
class TorchOps:
    """One block's operations in one pass; ``block`` has the final norm at the model's ends.

    The outputs of ``unread`` projections are not made: their numbers are any.
    """

    shape: ModelShape
    weights: Weights
    block: BlockWeights
    layout: TokenLayout
    layer: int = 0
    unread: frozenset[str] = frozenset()

    # what is frozen

    def embedding(self, tokens: Tensor, scale: float, table: Tensor | None = None) -> Tensor:
        """Return embeddings (B, S, D) of tokens (B, S)."""
        if table is None:
            x = self.weights.embedding.rows(tokens).to(self.layout.dtype)
        else:
            x = trained.table_rows(table, tokens, self.layout.dtype)
        if scale == 1.0:
            return x
        # transformers rounds this factor to the model's own number format
        return x * float(torch.tensor(scale, dtype=self.weights.embedding.dtype))

    def position_embedding(self) -> Tensor:
        """Return the embeddings (B, S, D) of the tokens' positions."""
        assert self.weights.positions is not None
        at = self.layout.positions
        at = at + self.shape.position_offset if self.shape.position_offset else at
        return self.weights.positions[at].to(self.layout.dtype)

    def linear(self, role: str, x: Tensor, *, bias: bool = True) -> Tensor:
        """Multiply by a frozen matrix."""
        matrix, read = self.block.matrices[role], role not in self.unread
        return linear.frozen_linear(x, matrix, self._bias(role, bias), read=read)

    def lora_linear(
        self, role: str, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: Dropout | None,
        *, bias: bool = True, fixed: bool = False,
    ) -> Tensor:  # fmt: skip
        """Multiply by a frozen matrix and a low-rank update."""
        matrix, read = self.block.matrices[role], role not in self.unread
        a = a.detach() if fixed else a
        own = self._bias(role, bias)
        return linear.lora_linear(x, a, b, matrix, own, scale, self._placed(dropout), read=read)

    def bias(self, role: str, y: Tensor) -> Tensor:
        """Add a frozen bias."""
        bias = self._bias(role, True)
        return y if bias is None else y + bias.to(y.dtype)

    def norm(
        self, role: str, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Normalise x."""
        weight = self.block.norms.get(role) if weight is None else weight
        bias = self.block.norm_biases.get(role) if bias is None else bias
        own = self.shape.blocks[self.layer].norm_by_role.get(role)
        kind = self.shape.norm if own is None or own.kind is None else own.kind
        return pointwise.norm(x, kind, weight, bias)

    def row_norms(
        self, key: Key, a: Tensor, b: Tensor, scale: float, kept: KeptNorms[Tensor]
    ) -> Tensor:
        """Return the norms of the rows of ``W + scale b a``, W as it is multiplied."""
        dtype = product_dtype(self.layout.dtype, a.device)
        return row_norms(key, self.block.matrices[key[1]], dtype, a, b, scale, kept)

    # a mixture of experts

    def route(self, x: Tensor, rule: Experts) -> tuple[Tensor, Tensor]:
        """Choose experts for the tokens of x."""
        return routing.route(x, routing.Router(rule, self.block.routing))

    def experts(
        self, x: Tensor, weights: Tensor, chosen: Tensor, rule: Experts, activation: str,
        updates: ExpertUpdates[Tensor],
    ) -> Tensor:  # fmt: skip
        """Send each token through its experts."""
        own = experts.FrozenExperts(
            rule, activation, self.block.matrices, self.block.biases,
            {role: Update.of(each, rule.number) for role, each in updates.items()},
        )  # fmt: skip
        return experts.mixed(x, weights, chosen, own)

    def shared(self, x: Tensor, y: Tensor) -> Tensor:
        """Multiply what all tokens went through by how much of it each gets."""
        return experts.shared(x, y, self.block.routing["shared_gate"])

    # what tokens are to each other

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Rotate x (B, heads, S, h)."""
        return pointwise.rotate(
            x, *self.layout.cos_sin(rotary), interleaved=rotary.interleaved,
            trailing=rotary.trailing,
        )  # fmt: skip

    def with_shared(self, k: Tensor, shared: Tensor) -> Tensor:
        """Put what all heads share behind the channels of each."""
        return latent.with_shared(k, shared)

    def channels(self, x: Tensor, size: int) -> Tensor:
        """Put zeros behind channels, or leave the last ones out: a copy either way."""
        missing = size - x.shape[-1]
        return torch.nn.functional.pad(x, (0, missing)) if missing else x

    def keys(self, k: Tensor, v: Tensor) -> Keys:
        """Return the documents of each row; leave keys and values for the tiles to come."""
        tile = self.layout.tile
        if tile is not None:
            tile.leave(k, v)
        return Keys(self.layout.documents, self.layout.shared, tile=tile)

    def attend(
        self, attended: Attended[Tensor], before: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Attend, to keys in front of those of every document too."""
        if before is None:
            return attention.attended_to(attended)
        return attention.attended_behind(attended, *before)

    def sinks(self) -> Tensor:
        """Return the scores of sinks."""
        return self.block.mixer["sinks"]

    def lend(self, k: Tensor, v: Tensor) -> None:
        """Keep k and v for later blocks."""
        self.layout.lent[self.layer] = (k, v)

    def lent(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return what an earlier block has lent."""
        return self.layout.lent[layer]

    def per_layer_input(self) -> Tensor:
        """Return the block's own numbers of each token."""
        assert self.layout.per_layer is not None
        return self.layout.per_layer[self.layer]

    def frozen_times(self, x: Tensor, role: str) -> Tensor:
        """Multiply by a frozen tensor of the block."""
        return x * self.block.mixer[role].to(x.dtype)

    # several streams

    def parted_streams(self, x: Tensor, rule: AltUp) -> Tensor:
        """Begin the streams."""
        return altup.parted(x, [self.weights.streams[name] for name in rule.entries])

    def joined_streams(self, x: Tensor, rule: AltUp) -> Tensor:
        """Average the streams."""
        return altup.joined(x, [self.weights.streams[name] for name in rule.exits])

    def predicted(self, x: Tensor, routed: Tensor) -> Tensor:
        """Mix the streams."""
        own = self.block.mixer
        y: Tensor = altup.Predicted.apply(  # type: ignore[no-untyped-call]
            x, routed, own["altup_router"], own["altup_prediction"]
        )
        return y

    def corrected(self, x: Tensor, made: Tensor, routed: Tensor) -> Tensor:
        """Move the streams."""
        own, rule = self.block.mixer, self.shape.altup
        assert rule is not None
        y: Tensor = altup.Corrected.apply(  # type: ignore[no-untyped-call]
            x, made, routed, own["altup_router"], own["altup_correction"], rule.active
        )
        return y

    def added_behind(self, x: Tensor, y: Tensor) -> Tensor:
        """Add to all streams but the first."""
        out: Tensor = altup.AddedBehind.apply(x, y)  # type: ignore[no-untyped-call]
        return out

    def above(self, x: Tensor, deviations: float) -> Tensor:
        """Let through what is far above the mean."""
        y: Tensor = altup.Above.apply(x, deviations)  # type: ignore[no-untyped-call]
        return y

    def some_heads(self, attended: Attended[Tensor], heads: slice) -> Attended[Tensor]:
        """Attend with some heads."""
        k, v = attended.k[:, heads], attended.v[:, heads]
        shared = attended.q.shape[1] // attended.k.shape[1]
        first = (heads.start or 0) * shared
        q = attended.q[:, first : first + k.shape[1] * shared]
        sinks = attended.sinks
        sinks = None if sinks is None else sinks[first : first + k.shape[1] * shared]
        keys = attended.keys
        if keys.tile is not None:
            keys = replace(keys, tile=keys.tile.of(slice(None), heads))
        return replace(attended, q=q, k=k, v=v, keys=keys, sinks=sinks)

    def in_groups(self, attended: Attended[Tensor], size: int, *, late: bool) -> Attended[Tensor]:
        """Attend within groups of tokens, as if they were documents."""
        groups = grouped(attended.keys.documents, size, late=late)
        return replace(attended, keys=replace(attended.keys, documents=groups))

    def heads_together(self, parts: Sequence[Tensor]) -> Tensor:
        """Put heads beside each other."""
        return torch.cat(list(parts), 1)

    def attend_all(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attend to keys that all queries see."""
        return attention.attend_all(q, k, v, scale)

    def cached_rows(self) -> int:
        """Return the number of caches."""
        return len(self.layout.caches)

    def cached(self, row: int, attended: Attended[Tensor]) -> Attended[Tensor]:
        """Write a row's keys and values behind the cached ones and attend to all of them."""
        ((count,),) = attended.keys.documents  # without the padding behind
        cache, source, tile = self.layout.caches[row], attended.rule.source, self.layout.tile
        first = 0 if tile is None else min(tile.start, count)
        count = min(count - first, attended.q.shape[2])
        start, stop = cache.length + first, cache.length + first + count
        layer = self.layer if source is None else source
        keys, values = cache.keys[layer], cache.values[layer]
        if source is None:
            keys[:, :, start:stop] = attended.k[:, :, :count]
            values[:, :, start:stop] = attended.v[:, :, :count]
        seen = replace(attended.keys, cached=True)
        attended = replace(attended, q=attended.q[:, :, :count])
        return attended.with_keys(keys[:, :, :stop], values[:, :, :stop], seen)

    def filled(self, x: Tensor, like: Tensor) -> Tensor:
        """Put zeros behind the positions of x."""
        missing = like.shape[2] - x.shape[2]
        return torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x

    def first_pass(self) -> bool:
        """Return whether the caches were empty when this pass began."""
        return self.layout.caches[0].length == 0

    def mix(
        self, mixer: Recurrent, inputs: Sequence[Tensor], trained: Mapping[str, Tensor]
    ) -> Tensor:
        """Carry a state within documents, or on from what is cached."""
        own = mixer.own(self.block.mixer, trained)
        tile = self.layout.tile
        if tile is not None and mixer.state:
            go_on = mixers.mixed_in_tile(mixer)
            documents = self.layout.documents_here
            y, tile.behind = go_on(mixer, inputs, own, documents, tile.state, tile.read)
            return y
        if not self.layout.caches:
            return mixers.mixed(mixer)(mixer, inputs, own, self.layout.documents_here)
        after = mixers.mixed_after(mixer)
        return self._carried(lambda last, *parts: after(mixer, parts, own, last), *inputs)

    # what is trained

    def low_rank(
        self, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: Dropout | None
    ) -> Tensor:
        """Multiply by a low-rank update alone."""
        dropout = self._placed(dropout)
        if dropout is not None:
            x = x * linear.mask(dropout, x.shape, x.device) / (1 - dropout.fraction)
        return (x @ a.to(x.dtype).T) @ b.to(x.dtype).T * scale

    def trained_linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply by a trained matrix."""
        return trained.trained_linear(x, weight)

    def add_bias(self, y: Tensor, bias: Tensor) -> Tensor:
        """Add a trained bias."""
        return trained.add_bias(y, bias)

    def times(self, x: Tensor, vector: Tensor) -> Tensor:
        """Multiply by a trained vector."""
        return x * vector.flatten().to(x.dtype)

    def times_ratio(self, x: Tensor, above: Tensor, below: Tensor) -> Tensor:
        """Multiply by the ratio of two vectors."""
        return x * (above / below).to(x.dtype)

    def times_heads(self, x: Tensor, vector: Tensor) -> Tensor:
        """Multiply each head by its number."""
        return x * vector.to(x.dtype)[:, None, None]

    def replaced(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Put a trained prompt at the first positions."""
        rows, positions = prompt.to(x.dtype), self.layout.positions
        at = positions.clamp(max=len(rows) - 1)
        return torch.where((positions < len(rows))[..., None], rows[at], x)

    def cast(self, trained: Tensor) -> Tensor:
        """Return a trained tensor in the type of activations."""
        return trained.to(self.layout.dtype)

    # small tensors, in float32

    def float32_linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Multiply trained tensors."""
        return x @ weight.T + bias

    def tanh(self, x: Tensor) -> Tensor:
        """Return tanh of x."""
        return torch.tanh(x)

    def some_rows(self, trained: Tensor, rows: slice) -> Tensor:
        """Return rows of a trained tensor; their gradient is added to those of the tensor's.

        Slicing the tensor itself would make a gradient of its full size for every slice.
        """
        if trained.grad is None or not torch.is_grad_enabled():
            return trained[rows]
        part = trained.detach()[rows].requires_grad_()
        part.grad = trained.grad[rows]
        return part

    def some_columns(self, trained: Tensor, columns: slice) -> Tensor:
        """Return columns of a trained tensor."""
        return trained[:, columns]

    def keys_values(self, flat: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Return k and v (1, G, P, h) of flat (P, 2 G h)."""
        by_head = flat.to(self.layout.dtype).view(len(flat), 2, heads, -1)
        k, v = by_head.permute(1, 2, 0, 3)[:, None]
        return k, v

    def fastfood(
        self, vector: Tensor, signs: Tensor, order: Tensor, gaussian: Tensor, scale: Tensor,
        size: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        """Return a random projection of a trained vector as a matrix."""
        return fastfood.fastfood(vector, signs, order, gaussian, scale, size)

    def scaled_matrix(self, rows: Tensor, matrix: Tensor, columns: Tensor) -> Tensor:
        """Scale the rows and columns of a constant matrix."""
        return trained.scaled_matrix(rows, matrix, columns)

    # element by element, and views

    def activation(self, x: Tensor, name: str) -> Tensor:
        """Return the named activation of x."""
        if name == "xielu":
            return xielu.xielu(x, self.block.mixer)
        return pointwise.activation(x, name)

    def gated(self, gate: Tensor, up: Tensor, name: str) -> Tensor:
        """Return ``activation(gate) * up``."""
        return pointwise.gated_activation(gate, up, name)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x + y``."""
        return x + y

    def subtract(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x - y``."""
        return x - y

    def scaled(self, x: Tensor, factor: float) -> Tensor:
        """Return ``factor x``."""
        return x * factor

    def split(self, x: Tensor, widths: Sequence[int]) -> Sequence[Tensor]:
        """Return views of parts of the last axis."""
        return torch.split(x, list(widths), dim=-1)

    def split_by_head(self, x: Tensor, heads: int, widths: Sequence[int]) -> Sequence[Tensor]:
        """Return copies of the parts of each head."""
        by_head = x.view(*x.shape[:-1], heads, -1)
        return [part.flatten(2) for part in torch.split(by_head, list(widths), dim=-1)]

    def to_heads(self, x: Tensor, size: int) -> Tensor:
        """Return (B, S, heads, size)."""
        return x.reshape(*x.shape[:-1], -1, size)

    def heads_first(self, x: Tensor) -> Tensor:
        """Return (B, heads, S, h)."""
        return x.transpose(1, 2)

    def from_heads(self, x: Tensor) -> Tensor:
        """Return (B, S, heads * h)."""
        return x.transpose(1, 2).flatten(2)

    # several adapters in one batch

    def rows(self, x: Tensor, rows: slice) -> Tensor:
        """Return some rows."""
        return x[rows]

    def attended_rows(self, attended: Attended[Tensor], rows: slice) -> Attended[Tensor]:
        """Return the attention of some rows."""
        q, k, v = (x[rows] for x in (attended.q, attended.k, attended.v))
        own = attended.keys
        tile = None if own.tile is None else own.tile.of(rows)
        keys = replace(own, documents=own.documents[rows], shared=own.shared[rows], tile=tile)
        return replace(attended, q=q, k=k, v=v, keys=keys)

    def concatenated(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the rows of all parts."""
        return torch.cat(list(parts))

    def of_rows(self, rows: slice) -> TorchOps:
        """Return the operations on some rows."""
        return replace(self, layout=self.layout.of_rows(rows))

    def unpacked_once(self, role: str) -> TorchOps:
        """Return the operations with a matrix that is unpacked once."""
        matrices = {role: unpacked_once(self.block.matrices[role])}
        return replace(self, block=replace(self.block, matrices=matrices))

    def _carried(self, go_on: Callable[..., tuple[Tensor, Any]], *inputs: Tensor) -> Tensor:
        """Return what comes of each row's tokens after those before, and keep what goes on.

        ``go_on`` is given what it returned for a row's tokens before, None at the beginning.
        """
        outputs, positions = [], inputs[0].shape[1]
        for row, cache in enumerate(self.layout.caches):
            ((count,),) = self.layout.documents[row : row + 1]
            before = cache.carried[self.layer] if cache.length else None
            parts = (x[row : row + 1, :count] for x in inputs)
            out, cache.carried[self.layer] = go_on(before, *parts)
            outputs.append(torch.nn.functional.pad(out, (0, 0, 0, positions - count)))
        return torch.cat(outputs)

    def _placed(self, dropout: Dropout | None) -> Dropout | None:
        """Return a dropout that knows where the rows of this pass begin."""
        tile = self.layout.tile
        return dropout if dropout is None or tile is None else replace(dropout, start=tile.start)

    def _bias(self, role: str, wanted: bool) -> Tensor | None:
        return self.block.biases.get(role) if wanted else None
