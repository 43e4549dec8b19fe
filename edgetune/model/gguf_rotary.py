"""How a GGUF file says that positions are rotated: by metadata, and by tensors of factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from edgetune.errors import ModelError
from edgetune.escapes import one_line
from edgetune.model.gguf_names import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from edgetune.tensors.gguf.metadata import Metadata
from edgetune.tensors.gguf.reader import GgufHeader

LOW: Final = 1.0
HIGH: Final = 4.0
ORIGINAL: Final = 8192
"""What all published models with Llama 3.1's rule share; the factor is the largest of the file."""

_MOST: Final = 4096
"""Channels of a head that rotate; no model has as many."""


def rope_parameters(header: GgufHeader, architecture: str) -> dict[str, Any]:
    """Return ``rope_parameters`` of a config, nothing where rotation is the plain one.

    Raises:
        ModelError: if the scaling is of a kind that is not known.
    """
    metadata = header.metadata
    base = metadata.number(f"{architecture}.rope.freq_base", 10_000.0)
    table = _scaling(header, f"{architecture}.rope.scaling.")
    if ROPE_FACTORS in header.tensors:
        context = metadata.whole(f"{architecture}.context_length")
        table = _llama3(factors(header, ROPE_FACTORS), base, context)
    if LONG_FACTORS in header.tensors:
        table = _longrope(header, architecture)
    return {"rope_parameters": {"rope_theta": base, **table}} if table else {}


def rotated_share(header: GgufHeader, architecture: str, config: Mapping[str, Any]) -> float:
    """Return the share of a head's channels that rotate."""
    head = config.get("head_dim", config["hidden_size"] // max(1, config["num_attention_heads"]))
    return header.metadata.whole(f"{architecture}.rope.dimension_count", head) / float(head)


def _scaling(header: GgufHeader, prefix: str) -> dict[str, Any]:
    metadata = header.metadata
    kind = metadata.text(f"{prefix}type", "linear" if f"{prefix}factor" in metadata else "none")
    factor = metadata.number(f"{prefix}factor", 1.0)
    match kind:
        case "none":  # whatever else is said
            return {}
        case "linear":
            return {"rope_type": "linear", "factor": factor}
        case "yarn":
            original = metadata.whole(f"{prefix}original_context_length")
            return {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                **_yarn(metadata, prefix, factor),
            }
        case "longrope":
            return {}  # its tensors say the rest
    raise ModelError(
        f"{header.file}: {one_line(prefix)}type is {one_line(kind)}. Supported: none, linear, "
        "yarn, longrope."
    )


def _yarn(metadata: Metadata, prefix: str, factor: float) -> dict[str, Any]:
    """Return what a file says of YaRN beyond its usual bounds and magnitude."""
    found = {}
    for bound in ("beta_fast", "beta_slow"):
        if f"{prefix}yarn_{bound}" in metadata:
            found[bound] = metadata.number(f"{prefix}yarn_{bound}")
    stated = metadata.number(f"{prefix}yarn_attn_factor", 1.0)  # the whole of it, where converted
    if stated != 1.0:
        found["attention_factor"] = stated
    magnitude = metadata.number(f"{prefix}attn_factor", 1.0)
    if magnitude != 1.0 and factor >= 1:
        found["attention_factor"] = magnitude * (1 + 0.1 * math.log(factor))
    return found


def factors(header: GgufHeader, name: str) -> list[float]:
    """Return what a tensor says that each frequency is divided by."""
    from edgetune.tensors.reader import read_tensor

    stored = header.tensors[name]
    if stored.dtype != "float32" or len(stored.shape) != 1 or stored.shape[0] > _MOST:
        raise ModelError(f"{header.file}: {name} must be a list of factors in F32.")
    factors = [float(factor) for factor in read_tensor(stored)]
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise ModelError(f"{header.file}: {name} has factors that are no positive numbers.")
    return factors


def _llama3(factors: list[float], base: float, context: int) -> dict[str, Any]:
    """Return Llama 3.1's rule if it gives these factors, else the factors themselves."""
    expected = _llama3_factors(len(factors), base, max(factors))
    if all(math.isclose(*pair, rel_tol=1e-5) for pair in zip(factors, expected, strict=True)):
        return {
            "rope_type": "llama3",
            "factor": max(factors),
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL,
        }
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }


def _llama3_factors(count: int, base: float, factor: float) -> list[float]:
    """Return what Llama 3.1's rule divides each frequency by."""
    factors = []
    for channel in range(count):
        turns = ORIGINAL / (2 * math.pi * base ** (channel / count))
        share = min(1.0, max(0.0, (turns - LOW) / (HIGH - LOW)))
        factors.append(1 / ((1 - share) / factor + share))
    return factors


def _longrope(header: GgufHeader, architecture: str) -> dict[str, Any]:
    metadata, prefix = header.metadata, f"{architecture}.rope.scaling."
    if SHORT_FACTORS not in header.tensors:
        raise ModelError(f"{header.file} has {LONG_FACTORS} and no {SHORT_FACTORS}.")
    context = metadata.whole(f"{architecture}.context_length")
    table: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": factors(header, SHORT_FACTORS),
        "long_factor": factors(header, LONG_FACTORS),
    }
    if f"{prefix}attn_factor" in metadata:
        table["attention_factor"] = metadata.number(f"{prefix}attn_factor")
    original = metadata.whole(f"{prefix}original_context_length", context)
    return table | {"original_max_position_embeddings": original, "factor": context / original}
