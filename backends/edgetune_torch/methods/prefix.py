"""Prefix tuning: trained keys and values before those of every document.

B rows, S positions, H heads, G key/value heads, P length of the prefix, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import Parameter

from edgetune.methods.prefix import Prefix
from edgetune.methods.prompt import NAME
from edgetune.shape import ModelShape
from edgetune_torch.adaptation import Adapted, Attended
from edgetune_torch.attention import Documents


class PrefixAdaptation(Adapted):
    """Attends to the prefix and the tokens at once.

    Every document is preceded by the prefix's keys and values and by as many queries that
    nobody reads: attention stays square and causal, and needs no mask.
    """

    def __init__(
        self, spec: Prefix, shape: ModelShape, parameters: Mapping[str, Parameter]
    ) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._length = spec.length

    def attend(self, attended: Attended) -> Tensor:
        """Return the output (B, H, S, h) of the tokens' queries."""
        k, v = self._keys_values(attended.layer, attended.q.dtype)
        q, length = attended.q, self._length
        if attended.cached:
            keys, values = torch.cat((k, attended.k), 2), torch.cat((v, attended.v), 2)
            return replace(attended, k=keys, v=values).out()
        nothing = q.new_zeros(1, q.shape[1], length, q.shape[3])
        documents = attended.documents
        out = replace(
            attended,
            q=_preceded(q, nothing, documents),
            k=_preceded(attended.k, k, documents),
            v=_preceded(attended.v, v, documents),
            documents=tuple(tuple(size + length for size in row) for row in documents),
        ).out()
        return _followed(out, length, documents, q.shape[2])

    def _keys_values(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the prefix's keys and values of a layer, (1, G, P, h) each."""
        heads, size = self.shape.kv_heads, self.shape.head_dim
        span = slice(2 * layer * heads * size, 2 * (layer + 1) * heads * size)
        flat = self._values(span).to(dtype).view(self._length, 2, heads, size)
        k, v = flat.permute(1, 2, 0, 3)[:, None]
        return k, v

    def _values(self, span: slice) -> Tensor:
        """Return some of the numbers (P, width) that a prefix consists of."""
        if NAME in self.parameters:
            return self.parameters[NAME][:, span]
        inner = self.parameters["prefix.embedding"] @ self.parameters["prefix.inner.weight"].T
        inner = torch.tanh(inner + self.parameters["prefix.inner.bias"])
        outer = inner @ _part(self.parameters["prefix.outer.weight"], span).T
        return outer + _part(self.parameters["prefix.outer.bias"], span)


def _part(parameter: Parameter, span: slice) -> Tensor:
    """Return some rows of a parameter; their gradient is added to those of the parameter's.

    Slicing the parameter itself would make a gradient of its full size for every layer.
    """
    if parameter.grad is None or not torch.is_grad_enabled():
        return parameter[span]
    part = parameter.detach()[span].requires_grad_()
    part.grad = parameter.grad[span]
    return part


def _preceded(x: Tensor, before: Tensor, documents: Documents) -> Tensor:
    """Return x (B, heads, S, h) with ``before`` (1, heads, P, h) in front of each document.

    Padding behind the documents stays; all rows come out as long as the one with most documents.
    """
    if all(len(row) <= 1 for row in documents):
        return torch.cat((before.expand(len(x), -1, -1, -1), x), 2)
    most = max(map(len, documents))
    return torch.cat([_row(x[i : i + 1], before, row, most) for i, row in enumerate(documents)])


def _row(x: Tensor, before: Tensor, lengths: tuple[int, ...], most: int) -> Tensor:
    parts, start = [], 0
    for length in lengths:
        parts += [before, x[:, :, start : start + length]]
        start += length
    missing = (most - len(lengths)) * before.shape[2]
    padding = x.new_zeros(1, x.shape[1], missing, x.shape[3])
    return torch.cat((*parts, x[:, :, start:], padding), 2)


def _followed(out: Tensor, length: int, documents: Documents, positions: int) -> Tensor:
    """Return what is left (B, heads, S, h) without the first ``length`` of each document."""
    if all(len(row) <= 1 for row in documents):
        return out[:, :, length:]
    rows = []
    for i, lengths in enumerate(documents):
        parts, start = [], 0
        for size in lengths:
            parts.append(out[i : i + 1, :, start + length : start + length + size])
            start += length + size
        padding = positions - sum(lengths)
        rows.append(torch.cat((*parts, out[i : i + 1, :, start : start + padding]), 2))
    return torch.cat(rows)
