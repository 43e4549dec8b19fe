"""The header of a GGUF file, asked for what a ``config.json`` says."""

from __future__ import annotations

from typing import Any, Final

from edgetune.errors import ModelError
from edgetune.escapes import one_line
from edgetune.model.gguf_names import EMBEDDING
from edgetune.model.gguf_rotary import rope_parameters
from edgetune.tensors.gguf.metadata import Array, Metadata
from edgetune.tensors.gguf.reader import GgufHeader

MOST_LAYERS: Final = 10_000
"""Far above every model; a damaged file must not ask for a list of billions."""

Config = dict[str, Any]


class Source:
    """A header, with the keys of its architecture by their short names."""

    def __init__(self, header: GgufHeader) -> None:
        """Read the architecture."""
        self.header = header
        self.metadata: Metadata = header.metadata
        self.architecture = header.metadata.text("general.architecture")

    def whole(self, name: str, default: int | None = None) -> int:
        """Return a whole number; a list of one number a layer must be all the same."""
        key = f"{self.architecture}.{name}"
        listed = self.metadata.raw(key)
        if isinstance(listed, int) or listed is None or isinstance(listed, str | float):
            return self.metadata.whole(key, default)
        found = set(self.metadata.items(key, int) or ())
        if len(found) != 1:
            raise ModelError(
                f"{self.header.file}: {one_line(key)} differs from layer to layer, which is not "
                "supported."
            )
        return int(found.pop())

    @property
    def layers(self) -> int:
        """Number of layers, without those at the end that guess further tokens, which are not used."""
        further = self.whole("nextn_predict_layers", 0)
        if not 0 <= further <= MOST_LAYERS:
            raise ModelError(
                f"{self.header.file} says that {further:,} layers guess further tokens."
            )
        return self.whole("block_count") - further

    def each(self, name: str, kind: type = int) -> list[Any]:
        """Return a number of every layer; one number is that of all.

        Raises:
            ModelError: if it is missing, or a list that does not have one of each layer.
        """
        blocks = self.whole("block_count")
        if blocks > MOST_LAYERS:
            raise ModelError(f"{self.header.file} says that it has {blocks:,} layers.")
        key = f"{self.architecture}.{name}"
        if self.lists(name):
            listed = self.metadata.items(key, kind) or []
            if len(listed) != blocks:
                raise ModelError(
                    f"{self.header.file}: {one_line(key)} lists {len(listed)} numbers for "
                    f"{blocks} layers."
                )
            return listed[: self.layers]
        if kind is bool:
            return [self.metadata.flag(key, False)] * self.layers
        return [self.metadata.whole(key)] * self.layers

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number."""
        return self.metadata.number(f"{self.architecture}.{name}", default)

    def has(self, name: str) -> bool:
        """Return whether the architecture's key is there."""
        return f"{self.architecture}.{name}" in self.metadata

    def lists(self, name: str) -> bool:
        """Return whether the architecture's key is a list."""
        return isinstance(self.metadata.raw(f"{self.architecture}.{name}"), Array)

    def has_tensor(self, name: str) -> bool:
        """Return whether the file has a tensor."""
        return name in self.header.tensors

    @property
    def vocabulary(self) -> int:
        """Number of tokens with an embedding."""
        embedding = self.header.tensors.get(EMBEDDING)
        if embedding is None or len(embedding.shape) != 2:
            raise ModelError(
                f"{self.header.file} has no matrix {EMBEDDING}. Is it a part of a model, or "
                "something else than a language model?"
            )
        return embedding.shape[0]


def sizes(
    source: Source,
    *,
    norm: str = "rms_norm_eps",
    layer_norm: bool = False,
    ffn: int | None = None,
    kv_heads: int | None = None,
    eps: float | None = None,
) -> Config:
    """Return the sizes that most models have; those given are not asked for.

    ``eps`` is what norms have where a file does not say it.
    """
    heads = source.whole("attention.head_count")
    kind = "layer_norm_epsilon" if layer_norm else "layer_norm_rms_epsilon"
    config = {
        "hidden_size": source.whole("embedding_length"),
        "intermediate_size": source.whole("feed_forward_length") if ffn is None else ffn,
        "num_hidden_layers": source.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": (
            source.whole("attention.head_count_kv", heads) if kv_heads is None else kv_heads
        ),
        "max_position_embeddings": source.whole("context_length"),
        norm: source.number(f"attention.{kind}", eps),
        "rope_theta": source.number("rope.freq_base", 10_000.0),
    }
    if source.has("attention.key_length"):
        config["head_dim"] = source.whole("attention.key_length")
    return config | rope_parameters(source.header, source.architecture)
