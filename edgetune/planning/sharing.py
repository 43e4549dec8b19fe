"""Whether the two answers of a pair share what is computed of their prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.errors import UsageError
from edgetune.objectives import objective_of
from edgetune.settings.spec import Decision, Training
from edgetune.shape import ModelShape


def sharing_for(
    shape: ModelShape, fixed: Mapping[str, Any], training: Mapping[str, Any]
) -> Decision[bool] | None:
    """Return whether prompts are shared, and why; None: there are no pairs.

    ``fixed`` are the knobs of the choice and the method that were asked for.

    Raises:
        UsageError: if it was asked for and cannot be.
    """
    asked = training.get("share_prompts")
    objective = objective_of(Training(**training))
    if objective is None or objective.rows != "pairs":
        if asked:
            raise UsageError("--share-prompts is for objectives that learn from pairs.")
        return None
    obstacle = _obstacle(shape, fixed)
    if obstacle is not None:
        if asked:
            raise UsageError(f"--share-prompts cannot be had: {obstacle}. Leave it out.")
        return Decision(False, f"each answer of a pair computes its prompt: {obstacle}")
    if asked is False:
        return Decision(False, "each answer of a pair computes its prompt: --no-share-prompts")
    return Decision(True, "both answers of a pair share what is computed of their prompt")


def _obstacle(shape: ModelShape, fixed: Mapping[str, Any]) -> str | None:
    if fixed.get("attention_group") is not None:
        return "--attention-group cuts it into groups"
    if shape.rotates_by_length:
        return "the model rotates it by the length of what follows (LongRoPE)"
    if not shape.forks:
        return "the model has blocks without attention, which go on from one token only"
    return None
