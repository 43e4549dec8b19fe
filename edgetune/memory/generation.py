"""How many prompts can be continued at once: keys and values of all their tokens are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgetune.buckets import bucket
from edgetune.choice import Choice
from edgetune.memory.estimate import MemoryEstimate
from edgetune.shape import ModelShape
from edgetune.storage import BYTES, FLOAT32_BYTES

MOST_ROWS = 16
"""More at once no longer make the products faster on a processor."""


def cache_bytes(shape: ModelShape, choice: Choice, tokens: int) -> int:
    """Return the bytes of the keys and values of a row of ``tokens``, its answer included.

    Layers without attention keep what they go on from, however long the row is.
    """
    width = sum(block.keys for block in shape.blocks)
    carried = FLOAT32_BYTES * sum(block.carried for block in shape.blocks)
    return 2 * width * tokens * BYTES[choice.compute_dtype] + carried


def row_bytes(shape: ModelShape, choice: Choice, tokens: int) -> int:
    """Return the bytes of a row: its cache, its logits, and those of the token before."""
    return cache_bytes(shape, choice, tokens) + 2 * FLOAT32_BYTES * shape.vocabulary


def attended_bytes(shape: ModelShape, tokens: int) -> int:
    """Return the bytes that one row's attention to its cache takes for a moment.

    Keys and values of a layer may be copied, widened, and laid out for every head.
    """
    columns = max(2 * block.keys + 2 * block.queries for block in shape.kinds)
    return FLOAT32_BYTES * columns * tokens


@dataclass(frozen=True, slots=True)
class Room:
    """What a plan's peak has room for when prompts are continued.

    ``attached`` are the bytes of adapters besides the session's own.
    """

    shape: ModelShape
    choice: Choice
    memory: MemoryEstimate
    attached: int = 0

    def holds(self, rows: Sequence[int], kept: Sequence[int] = ()) -> bool:
        """Return whether rows of so many tokens fit, beside caches of others that have ended."""
        shape, choice = self.shape, self.choice
        taken = sum(row_bytes(shape, choice, tokens) for tokens in rows)
        taken += sum(cache_bytes(shape, choice, tokens) for tokens in kept)
        longest = max((*rows, *kept), default=0)
        return len(rows) <= MOST_ROWS and taken <= self._left(longest)

    def longest_answer(self, prompt: int, most: int) -> int:
        """Return how long the answer to one prompt may be, from 1 to ``most`` tokens."""

        def fits(answer: int) -> bool:
            tokens = prompt + answer
            return row_bytes(self.shape, self.choice, tokens) <= self._left(tokens)

        # what is known to fit, or is taken anyway, and the first that does not
        low, high = 1, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def prompts_at_once(self, tokens: int) -> int:
        """Return how many rows can read so many tokens at once, as a micro-batch does; at least 1."""
        choice = self.choice
        return max(1, choice.micro_batch * (choice.tile or choice.context) // bucket(tokens))

    def _left(self, tokens: int) -> int:
        """Return the bytes that are left for the caches of rows of so many tokens.

        Without training there are no gradients, no optimizer and nothing kept for a backward pass:
        what they take goes to the cache.
        """
        parts, passing = self.memory.parts, pass_bytes(self.shape, self.memory, tokens)
        held = parts.weights + parts.adapter + parts.runtime + self.attached
        return self.memory.peak_bytes - held - passing


def pass_bytes(shape: ModelShape, memory: MemoryEstimate, tokens: int) -> int:
    """Return what a pass takes for a moment beside the caches of rows of so many tokens."""
    parts = memory.parts
    trained = parts.adapter + parts.gradients + parts.optimizer
    evaluated = memory.phases.evaluate - parts.weights - trained - parts.runtime
    return max(evaluated, attended_bytes(shape, tokens))
