"""Modules that are trained whole beside an update, as PEFT's ``modules_to_save`` has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgetune.errors import UsageError
from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import Copy
from edgetune.methods.targets import norms
from edgetune.methods.trained import trained_norm
from edgetune.network.ops import A
from edgetune.settings.spec import MOST_RATE, Interval, check_numbers, knob
from edgetune.shape import ModelShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetune.methods.adapted import Adapted
    from edgetune.methods.merging import Update
    from edgetune.network.block import Block

EMBEDDINGS, HEAD, NORMS = "embeddings", "head", "norms"
WORDS: Final = (EMBEDDINGS, HEAD, NORMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WithModules(Method):
    """A method that can train float32 copies of embedding, head and norms beside its own tensors.

    V vocabulary, D hidden size. Where embedding and head are one matrix (V, D) they stay one, which
    ``embeddings`` names. The matrices learn at a rate of their own: an update of low rank wants
    about ten times the rate of the weights themselves.
    """

    modules_to_save: tuple[str, ...] = knob(
        (),
        "Modules trained whole beside the update: embeddings, head, norms, comma-separated.",
    )
    modules_rate: float = knob(
        0.1,
        "Learning rate of trained embeddings and heads as a multiple of the update's.",
        interval=Interval(above=0, high=MOST_RATE),
    )

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing and words that name no module."""
        check_numbers(self)
        words = self.modules_to_save
        strange = [word for word in words if word not in WORDS or words.count(word) > 1]
        if strange:
            found = "there twice" if strange[0] in WORDS else "no module"
            raise UsageError(
                f"--modules-to-save {','.join(words)}: {strange[0]} is {found}. There are "
                f"{', '.join(WORDS)} (PEFT's embed_tokens is embeddings, its lm_head is head)."
            )

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse to train an embedding that layers have tables of their own beside."""
        if not self.trains_input or shape.per_layer is None:
            return []
        reason = (
            f"The layers of this {shape.family} model look up each token in a table of their own, "
            "which would not follow a trained embedding. Leave embeddings out of --modules-to-save."
        )
        return [reason]

    def module_tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return the copies: V D numbers of an embedding or a head, and the norms' own.

        Raises:
            UsageError: if the model has no head of its own.
        """
        words, size = self.modules_to_save, (shape.vocabulary, shape.hidden_size)
        if HEAD in words and shape.tied:
            raise UsageError(
                f"The head of this {shape.family} model is its embedding: --modules-to-save "
                "embeddings trains both. Leave out head."
            )
        matrices = {EMBEDDINGS: shape.embedding_tensor, HEAD: shape.head_tensor}
        found = [
            AdapterTensor(name=name, shape=size, initial=Copy(name), rate=self.modules_rate)
            for word, name in matrices.items()
            if word in words
        ]
        of_norms = _norm_parts(shape) if NORMS in words else ()
        small = [AdapterTensor(name=n, shape=(x,), initial=Copy(n)) for n, x in of_norms]
        return (*found, *small)

    def module_changes(
        self, shape: ModelShape, tensors: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, Update]:
        """Return what merging puts in the place of the base's modules."""
        from edgetune.methods.merging import Replaced

        return {x.name: Replaced(tensors[x.name]) for x in self.module_tensors(shape)}

    @property
    def trains_input(self) -> bool:
        """Whether gradients are needed at the input: where embeddings are trained."""
        return EMBEDDINGS in self.modules_to_save

    def at_input(self, shape: ModelShape, name: str) -> bool:
        """Return whether a trained tensor is the embedding."""
        return name == shape.embedding_tensor

    def trained_head(self, shape: ModelShape) -> str | None:
        """Return the name of the trained head; a tied one is the trained embedding."""
        word = EMBEDDINGS if shape.tied else HEAD
        return shape.head_tensor if word in self.modules_to_save else None

    def look_up(self, block: Block[A], own: Adapted[A], tokens: A) -> A:
        """Return rows of the trained embedding, if there is one."""
        table = own.tensors.get(block.shape.embedding_tensor)
        return block.ops.embedding(tokens, block.shape.embedding_scale, table)

    def norm(self, block: Block[A], own: Adapted[A], role: str, x: A) -> A:
        """Return x normalised, by the trained copy if there is one."""
        if NORMS not in self.modules_to_save:
            return block.ops.norm(role, x)
        return trained_norm(block, own, role, x)


def words_of(shape: ModelShape) -> dict[str, str]:
    """Return the word for each tensor that could be trained whole, those of a tied head included."""
    matrices = {f"{shape.head}.weight": HEAD, shape.embedding_tensor: EMBEDDINGS}
    return matrices | {name: NORMS for name, _ in _norm_parts(shape)}


def _norm_parts(shape: ModelShape) -> Iterator[tuple[str, int]]:
    """Yield the name and the size of every tensor of a norm."""
    for module, norm in norms(shape, None):
        for part in norm.parts:
            yield f"{module}.{part}", norm.size
