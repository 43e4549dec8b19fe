"""What Ollama's own files call otherwise than llama.cpp's, and what they have besides.

Files of its library were made by its own converter: some tensors have other names, and towers that
see or hear are in the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from edgetune.tensors.gguf.reader import GgufHeader

TOWERS: Final = ("v.", "mm.", "a.", "mtp.", "model.vision_tower.")
"""What the names of tensors begin with that no text goes through: what sees, hears, or guesses
further tokens. They are neither read nor adapted."""

_RENAMED: Final[Mapping[str, Mapping[str, str]]] = {
    "gemma4": {".ffn_gate_inp.per_expert_scale": ".ffn_down_exps.scale"},
    "gptoss": {
        ".attn_out.": ".attn_output.",
        ".ffn_norm.": ".post_attention_norm.",
        ".attn_sinks": ".attn_sinks.weight",
    },
    "lfm2": {"output_norm.weight": "token_embd_norm.weight"},
    "qwen35": {".ssm_dt": ".ssm_dt.bias"},
    "qwen35moe": {".ssm_dt": ".ssm_dt.bias"},
}
"""By architecture, the ends of names, or what stands within: as they are there, and as here."""


def translated(header: GgufHeader) -> GgufHeader:
    """Return a header with llama.cpp's names and without the tensors of towers."""
    renamed = _RENAMED.get(header.metadata.text("general.architecture", ""), {})
    tensors = {
        _name(name, renamed): tensor
        for name, tensor in header.tensors.items()
        if not name.startswith(TOWERS)
    }
    return replace(header, tensors=tensors)


def has_tower(header: GgufHeader) -> bool:
    """Return whether a file has what sees or hears."""
    return any(name.startswith(TOWERS) for name in header.tensors)


def _name(name: str, renamed: Mapping[str, str]) -> str:
    for theirs, ours in renamed.items():
        inner = theirs.endswith(".")
        if inner and theirs in name:
            return name.replace(theirs, ours, 1)
        if not inner and name.endswith(theirs):
            return name.removesuffix(theirs) + ours
    return name
