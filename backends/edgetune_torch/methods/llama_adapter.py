"""LLaMA-Adapter: gated attention to a prompt beside a layer's own.

B rows, S queries, H heads, G key/value heads, P length of the prompt, h channels of a head.
"""

from __future__ import annotations

from torch import Tensor

from edgetune.methods.llama_adapter import attention_name
from edgetune_torch.adaptation import Adapted, Attended


class LlamaAdapterAdaptation(Adapted):
    """Adds ``gate * softmax(q k^T) v`` over the prompt's keys and values, without positions."""

    def attend(self, attended: Attended) -> Tensor:
        """Return the output (B, H, S, h) with that over the prompt, if the layer has one."""
        out, q = attended.out(), attended.q
        name = attention_name(self.shape, attended.layer)
        prompt = self.parameters.get(f"{name}.adaption_prompt")
        if prompt is None:
            return out
        k, v = attended.keys_values(prompt.to(q.dtype))  # (1, G, P, h)
        grouped = q.reshape(len(q), k.shape[1], -1, *q.shape[2:])  # (B, G, H/G, S, h)
        scores = grouped @ k.unsqueeze(2).transpose(-1, -2) * attended.rule.scale
        weights = scores.float().softmax(-1).to(q.dtype)
        gate = self.parameters[f"{name}.adaption_gate"].to(q.dtype)
        return out + (weights @ v.unsqueeze(2)).flatten(1, 2) * gate[:, None, None]
