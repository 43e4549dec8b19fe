"""Tokenized examples in a few flat arrays, however many there are.

Legend: N examples, T tokens of all of them together.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Places:
    """Where each example comes from; ``places[i]`` is what a message calls it.

    ``prefixes`` has one text a file (``"chats.jsonl:"``); ``files`` and ``lines`` are (N,).
    """

    prefixes: tuple[str, ...]
    files: Integers
    lines: Integers

    def __getitem__(self, index: int) -> str:
        """Return the place of one example, such as ``chats.jsonl:12``."""
        return f"{self.prefixes[self.files[index]]}{self.lines[index]}"

    def take(self, order: Integers) -> Places:
        """Return the places of the examples in ``order``."""
        return Places(self.prefixes, self.files[order], self.lines[order])


@dataclass(frozen=True, slots=True)
class Examples:
    """N examples: ``tokens`` (T,) int32, ``mask`` (T,) bool, ``offsets`` (N + 1,) int64.

    The mask is true where a token is learned. The first token of an example never is:
    nothing comes before it to predict it from.
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]
    offsets: Integers
    places: Places

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the tokens and the loss mask of one example."""
        if not 0 <= index < len(self):
            raise IndexError(f"No example {index}; there are {len(self)}.")
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[part], self.mask[part]

    def __iter__(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """Go through the examples in order."""
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> Integers:
        """Tokens of each example, (N,) int64."""
        return np.diff(self.offsets)

    @property
    def loss_tokens(self) -> Integers:
        """Tokens under loss of each example, (N,) int64."""
        return np.diff(_starting_at_zero(self.mask)[self.offsets])

    def take(self, order: Integers) -> Examples:
        """Return the examples in ``order`` (indices)."""
        return self.slices(self.offsets[:-1][order], self.offsets[1:][order], order)

    def slices(self, starts: Integers, stops: Integers, rows: Integers) -> Examples:
        """Return examples cut out of the flat arrays; ``rows`` names the example each is from."""
        flat, offsets = ranges(starts, stops)
        mask = self.mask[flat]
        mask[offsets[:-1]] = False
        return Examples(self.tokens[flat], mask, offsets, self.places.take(rows))


def ranges(starts: Integers, stops: Integers) -> tuple[Integers, Integers]:
    """Return the numbers of all ranges one after another, and where each range begins.

    >>> ranges(np.array([5, 0]), np.array([7, 3]))
    (array([5, 6, 0, 1, 2]), array([0, 2, 5]))
    """
    offsets = _starting_at_zero(stops - starts)
    flat = np.repeat(starts - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
    return flat, offsets


def _starting_at_zero(counts: NDArray[np.int64] | NDArray[np.bool_]) -> Integers:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


class ExamplesBuilder:
    """Grows arrays row by row, so that no list of lists is ever held."""

    def __init__(self) -> None:
        """Start with no examples."""
        self._tokens, self._mask = array("i"), bytearray()
        self._offsets, self._files, self._lines = array("q", [0]), array("q"), array("q")

    def __len__(self) -> int:
        """Return the number of examples so far."""
        return len(self._files)

    def append(self, tokens: Sequence[int], mask: Sequence[bool], file: int, line: int) -> None:
        """Add one example that was read from ``line`` of the ``file``-th file."""
        self._tokens.extend(tokens)
        self._mask.extend(mask)
        self._mask[self._offsets[-1]] = False
        self._offsets.append(len(self._tokens))
        self._files.append(file)
        self._lines.append(line)

    def build(self, prefixes: tuple[str, ...]) -> Examples:
        """Return everything added, without a copy; ``prefixes`` are the names of the files."""
        files, lines = (np.frombuffer(part, np.int64) for part in (self._files, self._lines))
        return Examples(
            np.frombuffer(self._tokens, np.int32),
            np.frombuffer(self._mask, np.bool_),
            np.frombuffer(self._offsets, np.int64),
            Places(prefixes, files, lines),
        )
