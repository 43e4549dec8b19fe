"""Prompt tuning as PEFT writes it: one tensor of embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Final, cast

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters.base import ANYWHERE, AdapterFormat, unsupported
from edgetune.errors import ModelError
from edgetune.methods.base import Method
from edgetune.methods.prompt import Prompt
from edgetune.model.config import Fields
from edgetune.model.weights import listing
from edgetune.shape import ModelShape

_KNOWN: Final = ANYWHERE | {
    "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
    # how training began
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
}  # fmt: skip
ALLOWED: Final[Mapping[str, tuple[object, ...]]] = {
    "task_type": ("CAUSAL_LM",),
    "num_transformer_submodules": (1,),
}


_AS_PEFT: Final = "revision"
"""PEFT's files all have it; edgetune's older ones, whose prompts are as they stand in the stream, lack it."""

_MULTIPLIES: Final = frozenset({"granite", "granitemoe", "granitemoehybrid"})
"""Families whose models in transformers multiply the embeddings that they are given, prompts too."""


def _multiplied(shape: ModelShape) -> float:
    """Return what the model multiplies a prompt by that PEFT gives it."""
    return shape.embedding_scale if shape.family in _MULTIPLIES else 1.0


class PromptFormat(AdapterFormat):
    """``prompt_embeddings`` (length, hidden)."""

    prefix: ClassVar[str] = ""

    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return the fields of a ``PromptTuningConfig``; how it began is not among them."""
        return {
            "peft_type": "PROMPT_TUNING",
            "prompt_tuning_init": "RANDOM",
            _AS_PEFT: None,
            **sizes(
                shape,
                cast("Prompt", method).prompt_length,
                shape.hidden_size,
                shape.blocks[0].heads,
            ),
        }

    def stored_values(self, name: str, values: NDArray[Any], shape: ModelShape) -> NDArray[Any]:
        """Return a prompt as PEFT gives it to the model, which may multiply it."""
        factor = _multiplied(shape)
        return values if factor == 1.0 else values / values.dtype.type(factor)

    def own_values(
        self,
        name: str,
        values: NDArray[np.float32],
        config: Mapping[str, object],
        shape: ModelShape,
    ) -> NDArray[np.float32]:
        """Return a prompt as it stands in the stream."""
        factor = _multiplied(shape) if _AS_PEFT in config else 1.0
        return values if factor == 1.0 else values * np.float32(factor)

    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> Prompt:
        """Return prompt tuning of the length that the config says."""
        return Prompt(prompt_length=read_length(config, _KNOWN), prompt_initial="random")


def sizes(shape: ModelShape, length: int, width: int, heads: int) -> dict[str, Any]:
    """Return the fields that all of PEFT's prompt methods have; those left out keep defaults."""
    return {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_attention_heads": heads,
        "num_layers": shape.layers,
        "num_transformer_submodules": 1,
    }


def read_length(config: Mapping[str, object], known: Collection[str]) -> int:
    """Return the number of virtual tokens.

    Raises:
        ModelError: naming every field that cannot be honoured.
    """
    fields = Fields(config)
    length = fields.size("num_virtual_tokens")
    problems = [*fields.problems, *unsupported(config, known, ALLOWED)]
    if problems:
        raise ModelError(f"This prompt adapter cannot be used:\n  - {listing(problems)}")
    return length
