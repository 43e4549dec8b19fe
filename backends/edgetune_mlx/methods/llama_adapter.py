"""LLaMA-Adapter: gated attention to a prompt beside a layer's own.

B rows, S queries, H heads, G key/value heads, P length of the prompt, h channels of a head.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from edgetune.methods.llama_adapter import attention_name
from edgetune_mlx.adaptation import Adapted, Attended
from edgetune_mlx.linear import recomputed


class LlamaAdapterAdaptation(Adapted):
    """Adds ``gate * softmax(q k^T) v`` over the prompt's keys and values, without positions."""

    def attend(self, attended: Attended) -> mx.array:
        """Return the output (B, H, S, h) with that over the prompt, if the layer has one."""
        out, q = attended.out(), attended.q
        name = attention_name(self.shape, attended.layer)
        prompt = self.parameters.get(f"{name}.adaption_prompt")
        if prompt is None:
            return out
        k, v = attended.keys_values(prompt.astype(q.dtype))  # (1, G, P, h)
        gate = self.parameters[f"{name}.adaption_gate"].astype(q.dtype)
        added = recomputed(partial(_attention, scale=attended.rule.scale))(q, k, v)
        return out + added * gate[:, None, None]


def _attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
    return mx.fast.scaled_dot_product_attention(
        q, mx.broadcast_to(k, (len(q), *k.shape[1:])), mx.broadcast_to(v, (len(q), *v.shape[1:])),
        scale=scale,
    )  # fmt: skip
