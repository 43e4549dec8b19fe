"""Prompt tuning: trained embeddings before the input (Lester et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from edgetune.errors import UsageError
from edgetune.methods.base import AdapterTensor, Method
from edgetune.methods.initial import Initial, Tokens, Uniform
from edgetune.network.ops import A
from edgetune.settings.spec import Interval, knob
from edgetune.shape import ModelShape

if TYPE_CHECKING:
    from edgetune.methods.adapted import Adapted
    from edgetune.network.block import Block

NAME = "prompt_embeddings"
"""PEFT's name of the one tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Method):
    """``prompt_length`` trained rows (length, hidden) before every document."""

    kind: ClassVar[str] = "prompt"
    mergeable: ClassVar[bool] = False
    format: ClassVar[str] = "edgetune.adapters.prompt:PromptFormat"
    peft_type: ClassVar[str] = "PROMPT_TUNING"
    rate_factor: ClassVar[float] = 50.0
    reads_summands: ClassVar[bool] = False

    prompt_length: int = knob(
        20, "Trained tokens that prompt tuning puts before the input.", interval=Interval(low=1)
    )
    prompt_initial: Literal["vocabulary", "random", "text", "labels"] = knob(
        "vocabulary", "What trained tokens start from: common tokens, noise, --prompt-text."
    )
    prompt_text: str | None = knob(
        None, "The text, or the labels separated by commas, that trained tokens start from."
    )

    def __post_init__(self) -> None:
        """Refuse a start that lacks its text, or a text that nothing reads."""
        Method.__post_init__(self)
        wanted = self.prompt_initial in {"text", "labels"}
        if wanted != bool(self.prompt_text and self.prompt_text.strip(" ,")):
            raise UsageError(
                "--prompt-initial text and labels need a --prompt-text; the others take none. "
                f"Found --prompt-initial {self.prompt_initial}, --prompt-text {self.prompt_text!r}."
            )

    @property
    def virtual_tokens(self) -> int:
        """The trained rows."""
        return self.prompt_length

    @property
    def trains_input(self) -> bool:
        """Whether gradients are needed at the input: they are."""
        return True

    def tensors(self, shape: ModelShape) -> tuple[AdapterTensor, ...]:
        """Return the prompt: ``prompt_length * hidden`` parameters."""
        size = (self.prompt_length, shape.hidden_size)
        return (AdapterTensor(name=NAME, shape=size, initial=self._initial(shape)),)

    def embed(self, block: Block[A], own: Adapted[A], x: A) -> A:
        """Return the embeddings with the prompt at the first positions of every document."""
        return block.ops.replaced(x, own.tensors[NAME])

    def refusals(self, shape: ModelShape, *, context: int, quantization: str) -> list[str]:
        """Refuse a prompt that leaves too few positions, or whose rows would have to be tokens."""
        reasons = too_long(shape, context, self.prompt_length, "--prompt-length")
        if shape.per_layer is not None:
            reasons.append(
                f"The layers of this {shape.family} model look up each token in a table of their "
                "own, and a trained prompt has no tokens. Use --method lora."
            )
        return reasons

    def _initial(self, shape: ModelShape) -> Initial:
        if self.prompt_initial == "random":
            return Uniform(0.5)
        return Tokens(
            self.prompt_initial,
            self.prompt_text or "",
            shape.embedding_scale,
        )


def too_long(shape: ModelShape, context: int, length: int, flag: str) -> list[str]:
    """Return what to say where rows and ``length`` more take more positions than there are."""
    if context + length <= shape.max_context:
        return []
    rest = shape.max_context - length
    fits = f"--context {rest} would fit" if rest > 1 else f"fewer than {shape.max_context - 1} fit"
    reason = (
        f"{flag} {length} and a context of {context} take {context + length} positions; this "
        f"model has {shape.max_context}: {fits}."
    )
    return [reason]
