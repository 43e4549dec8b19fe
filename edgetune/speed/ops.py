"""How many operations a step consists of: each costs time of its own, however small its tensors.

Counted as the torch engine dispatches them, views included. The counts are a model, not a
transcript: a test holds them against the engine's for every method, family and number format.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from edgetune.choice import Choice
from edgetune.methods.base import Method
from edgetune.mixer import PIECE, SPAN
from edgetune.shape import (
    Attention,
    BlockShape,
    Experts,
    GatedDelta,
    Mixer,
    ModelShape,
    ShortConvolution,
    StateSpace,
)

BLOCK, LINEAR, NORM, ROTARY = 25, 5, 8, 20
"""Operations of a forward pass: of a block as such, of each projection, norm and rotation."""

CHUNKED_ATTENTION = 35
"""Further ones of attention that is not one fused operation: windows and capped scores."""

CONVOLVED, TAP = 10, 4
"""Those of a short convolution beside its projections, and of each of its taps."""

CORRECTED, PIECE_FORWARD, PIECE_BACKWARD = 20, 132, 500
"""Those of Gated DeltaNet beside its projections: as such, and of each piece of tokens."""

SCANNED, SPAN_FORWARD, SPAN_BACKWARD = 20, 75, 250
"""Those of Mamba-2 beside its projections: as such, and of each span of pieces."""

BACKWARD = 1.2
"""Operations of a backward pass for each of the forward pass."""

UNPACK = {
    "none": 0, "int8": 8, "q8": 8, "nf4": 29, "q4": 29, "mxfp4": 29, "nvfp4": 29,
    "gguf": 16,
}  # fmt: skip
"""Operations by which a stored matrix becomes numbers, in each pass."""

MIXTURE = 25
"""Operations of choosing experts and sorting tokens by them, in each pass."""

EXPERT_FORWARD, EXPERT_BACKWARD = (32, 3), (55, 5)
"""Operations of each expert that a token chose, and how many of its matrices are unpacked."""

TENSOR_FORWARD, TENSOR_BACKWARD = 5, 12
"""Operations for each trained tensor of a block."""

ATTENDED_FORWARD, ATTENDED_BACKWARD = 30, 50
"""Operations of attending to trained prompts or prefixes."""

UPDATE = {"adamw": 13, "adamw-8bit": 38, "paged-adamw-8bit": 38}
"""Operations of an optimizer for each trained tensor."""

ENDS, CHUNK = 80, 40
"""Operations beside the blocks: embedding, last norm and first chunk of the loss; other chunks."""


class Operations:
    """Counts the operations of one method on one model."""

    def __init__(self, shape: ModelShape, method: Method) -> None:
        """Prepare for many choices."""
        tensors = method.tensors(shape)
        self._tensors = len(tensors)
        self._first, self._layers = method.first_layer(shape), shape.layers
        adapted = max(1, shape.layers - self._first)
        trained = self._tensors / adapted
        self._linears = _mean(shape, lambda block: len(block.linears))
        self._frozen = _mean(shape, _block)
        self._mixtures = [block.experts for block in shape.blocks if block.experts is not None]
        self._corrected = _mean(shape, lambda block: isinstance(block.mixer, GatedDelta))
        self._scanned = _mean(shape, lambda block: isinstance(block.recurrent, StateSpace))
        forward, backward = (count / adapted for count in method.operations(shape))
        self._added = TENSOR_FORWARD * trained + ATTENDED_FORWARD * method.attends + forward
        self._added_backward = (
            TENSOR_BACKWARD * trained + ATTENDED_BACKWARD * method.attends + backward
        )

    def forward(self, choice: Choice) -> float:
        """Return the operations of a block's forward pass."""
        own = self._frozen + self._linears * UNPACK[choice.quantization] + self._added
        own *= choice.tiles
        pieces = self._pieces(choice, PIECE_FORWARD, SPAN_FORWARD)
        return own + pieces + self._of_experts(choice, EXPERT_FORWARD)

    def backward(self, choice: Choice) -> float:
        """Return the operations of a block's backward pass, a forward pass before it not counted."""
        unpacked = self._linears * UNPACK[choice.quantization]
        own = choice.tiles * (BACKWARD * self._frozen + unpacked + self._added_backward)
        pieces = self._pieces(choice, PIECE_BACKWARD, SPAN_BACKWARD)
        return own + pieces + self._of_experts(choice, EXPERT_BACKWARD)

    def _pieces(self, choice: Choice, piece: int, span: int) -> float:
        """Return the operations of what carries a state from piece to piece, of an average block."""
        corrected = self._corrected * piece * ceil(choice.context / PIECE)
        return corrected + self._scanned * span * ceil(choice.context / SPAN)

    def _of_experts(self, choice: Choice, each: tuple[int, int]) -> float:
        """Return the operations of the experts that any token chose, of an average block."""
        if not self._mixtures:
            return 0.0
        operations, products = each
        one = operations + products * UNPACK[choice.quantization]
        used = sum(_used(rule, choice.tokens) for rule in self._mixtures)
        return (MIXTURE * len(self._mixtures) + one * used) / self._layers

    def micro_batch(self, choice: Choice) -> float:
        """Return the operations of a micro-batch's loss and gradients."""
        again = max(0, choice.checkpointing.layers - self._first)
        return (
            (self._layers + again) * self.forward(choice)
            + (self._layers - self._first) * self.backward(choice)
            + _ends(choice)
        )

    def evaluation(self, choice: Choice) -> float:
        """Return the operations of evaluating a micro-batch."""
        return self._layers * self.forward(choice) + _ends(choice)

    def update(self, choice: Choice) -> float:
        """Return the operations of the optimizer's update."""
        return UPDATE[choice.optimizer] * self._tensors


def _ends(choice: Choice) -> float:
    """Return the operations of a micro-batch outside its blocks."""
    return ENDS + CHUNK * max(0, ceil(choice.tokens / choice.loss_chunk) - 1)


def _used(rule: Experts, tokens: int) -> float:
    """Return how many experts are chosen by any of so many tokens, if all are chosen as often."""
    return rule.number * (1 - (1 - rule.chosen / rule.number) ** tokens)


def _mean(shape: ModelShape, count: Callable[[BlockShape], int]) -> float:
    return sum(map(count, shape.blocks)) / shape.layers


def _block(block: BlockShape) -> int:
    """Return the operations of a frozen block's forward pass."""
    own = LINEAR * len(block.linears) + NORM * len(block.norms)
    beside = 0 if block.beside is None else _mixer(block.beside)
    return BLOCK + own + _mixer(block.mixer) + beside


def _mixer(mixer: Mixer) -> int:
    match mixer:
        case Attention():
            return _attention(mixer)
        case ShortConvolution():
            return CONVOLVED + TAP * mixer.taps
        case GatedDelta():
            return CORRECTED
        case StateSpace():
            return SCANNED


def _attention(rule: Attention) -> int:
    chunked = rule.window is not None or rule.softcap is not None or bool(rule.slopes or rule.sinks)
    return ROTARY * (rule.rotary is not None) + CHUNKED_ATTENTION * chunked
