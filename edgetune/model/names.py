"""From the names that checkpoints use to the one name that a tensor has here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from edgetune.shape import ModelShape

_EYES: Final = re.compile(
    r"^(model\.)?((vision_tower|multi_modal_projector|visual|vision_embedder|audio_tower"
    r"|embed_vision|embed_audio)\.|image_newline$)"
)
"""What models of images, sound and text see and hear with."""

_EXTRA: Final = re.compile(
    r"rotary_emb\.inv_freq$"  # buffers, computed from the config
    r"|\.(attn|attention)\.(masked_)?bias$"  # GPT-2's and GPT-NeoX's causal masks
    r"|^(model\.)?mtp\."  # what guesses several tokens ahead, which is not trained
    r"|(^|\.)total_(ops|params)$"  # a profiler's counts
)
_HEADS: Final = ("lm_head.weight", "embed_out.weight")


def match_names(shape: ModelShape, stored: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return the stored name of every tensor found, and the stored names nobody knows.

    Known extras (buffers, the copy of a tied head, a vision tower) are in neither. A tied head that is
    there alone is the embedding, as in transformers.
    """
    wanted = {tensor.name for tensor in shape.tensors()}
    found: dict[str, str] = {}
    strange: list[str] = []
    for name in stored:
        canonical = next((c for c in candidates(shape, name) if c in wanted), None)
        if canonical is not None and canonical not in found:
            found[canonical] = name
        elif not is_extra(shape, name):
            strange.append(name)
    alone = tied_heads(shape, stored)
    if len(alone) == 1:
        found.setdefault(shape.embedding_tensor, alone[0])
    return found, strange


def is_extra(shape: ModelShape, name: str) -> bool:
    """Return whether a stored tensor is known to be needless."""
    found = _EXTRA.search(name) or _EYES.search(name)
    unread = _unread(shape)
    ahead = tuple(shape.block(shape.layers + layer) for layer in range(shape.ahead))
    return (
        found is not None
        or bool(tied_heads(shape, [name]))
        or any(other in unread or other.startswith(ahead) for other in candidates(shape, name))
    )


def _unread(shape: ModelShape) -> frozenset[str]:
    """Return the keys' and values' tensors of layers that read those of others: files have them."""
    return frozenset(
        f"{shape.block(layer)}self_attn.{module}.weight"
        for layer in range(shape.layers)
        if shape.source(layer) is not None
        for module in ("k_proj", "v_proj", "k_norm")
    )


def is_for_images(shape: ModelShape, name: str) -> bool:
    """Return whether a module or a tensor is a part of a wrapper that text does not reach."""
    return shape.inside is not None and _EYES.search(name) is not None


def tied_heads(shape: ModelShape, stored: Iterable[str]) -> list[str]:
    """Return the stored copies of a head that is the embedding."""
    return heads(stored) if shape.tied else []


def heads(stored: Iterable[str]) -> list[str]:
    """Return the names that heads have."""
    return [name for name in stored if name.endswith(_HEADS)]


def layers_in(shape: ModelShape, stored: Iterable[str]) -> int:
    """Return how many layers names are of, but for those that are known to be needless."""
    before, after = shape.block_prefix.split("{}")
    numbers = re.compile(f"{re.escape(before)}([0-9]{{1,6}}){re.escape(after)}")
    found = (
        numbers.match(name)
        for each in stored
        if not is_extra(shape, each)
        for name in candidates(shape, each)
    )
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def candidates(shape: ModelShape, name: str) -> Iterator[str]:
    """Yield the names that a stored tensor can have here, the likeliest first."""
    root = shape.embedding.split(".")[0]
    yield name
    yield name.removeprefix("language_model.")
    yield name.replace("model.language_model.", "model.", 1)
    if name.startswith("backbone."):  # Nemotron-H, before transformers 5
        yield name.replace("backbone.", "model.", 1)
    yield f"{root}.{name}"
    if name in _HEADS:
        yield f"{shape.head}.weight"
