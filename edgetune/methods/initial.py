"""The values that trained tensors start from, as data and as numbers.

A start that is drawn is a function of the tensor's name and the seed alone, so that every
backend starts from the same bits, whatever its order. One that is taken from the base model is
read through :class:`Base`, which each backend implements over the weights that it computes with:
on a quantized base these are the dequantized ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from edgetune.errors import UsageError
from edgetune.escapes import short

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COMMON_TOKENS = 5000
"""Tokens that a prompt's rows are sampled from (Lester et al. 2021, section 3.2)."""

EXACT_SVD = 512
"""Matrices with a side of at most this are decomposed exactly."""


@dataclass(frozen=True, slots=True)
class Constant:
    """The same number everywhere."""

    value: float


@dataclass(frozen=True, slots=True)
class Uniform:
    """U(-bound, bound)."""

    bound: float


@dataclass(frozen=True, slots=True)
class Normal:
    """N(0, deviation^2)."""

    deviation: float


@dataclass(frozen=True, slots=True)
class Copy:
    """The values of a base tensor; a projection's are (outputs, inputs)."""

    source: str


@dataclass(frozen=True, slots=True)
class RowNorms:
    """The Euclidean norm of each output row of a projection (Liu et al. 2024, section 4)."""

    source: str


@dataclass(frozen=True, slots=True)
class Principal:
    """A factor of a projection's best approximation of low rank (Meng et al. 2024, eq. 2-4).

    ``scale * B A`` is the approximation; ``right`` is A (rank, inputs), ``left`` B
    (outputs, rank). Components beyond the smaller side of the matrix are 0: there are none.
    """

    source: str
    side: Literal["left", "right"]
    scale: float


@dataclass(frozen=True, slots=True)
class Tokens:
    """Embeddings of tokens: sampled common ones, a text's, or the mean of each label's.

    ``text`` is repeated or cut to the length; what ``labels`` (separated by commas) leave is
    sampled. ``factor`` is what the model multiplies its embeddings by.
    """

    choose: Literal["vocabulary", "text", "labels"]
    text: str = ""
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Signs:
    """1 or -1, each as likely."""


@dataclass(frozen=True, slots=True)
class Order:
    """The numbers from 0 on in a random order."""


@dataclass(frozen=True, slots=True)
class KeysValues:
    """What the model's cache holds of a text at the first positions: a row (numbers) a token.

    ``text`` begins as texts begin for the model's tokenizer, and is repeated or cut to the length.
    """

    text: str


Initial = (
    Constant | Uniform | Normal | Signs | Order | Copy | RowNorms | Principal | Tokens | KeysValues
)

ZEROS = Constant(0.0)
ONES = Constant(1.0)


class Base(Protocol):
    """The frozen model, for tensors that start from its values."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor of the checkpoint as it is used; a projection as (outputs, inputs)."""

    def rows(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Return some rows of the embedding, as they are stored."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the tokens of a text; ``special`` begins them with BOS, if the model wants it."""

    def keys_values(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return what its cache holds of tokens (P) at the first positions, (P, numbers).

        Layer after layer: the keys of all heads, then their values.
        """

    @property
    def vocabulary(self) -> int:
        """Number of tokens that have an embedding."""


def start(
    initial: Initial, name: str, shape: tuple[int, ...], seed: int, base: Base | None
) -> NDArray[np.float32]:
    """Return the float32 value that a tensor starts from; ``base`` where it is read."""
    # numpy costs 0.1 s to import, and planning needs names and sizes only.
    import numpy as np

    match initial:
        case Constant():
            return np.full(shape, initial.value, np.float32)
        case Uniform():
            drawn = generator(name, seed).uniform(-initial.bound, initial.bound, shape)
            return drawn.astype(np.float32)
        case Normal():
            return generator(name, seed).normal(0, initial.deviation, shape).astype(np.float32)
        case Signs():
            signs = generator(name, seed).integers(0, 2, shape)
            return (2 * signs - 1).astype(np.float32)
        case Order():
            return generator(name, seed).permutation(shape[0]).astype(np.float32)
    if base is None:
        raise ValueError(f"{name} starts from values of the base model")
    match initial:
        case Copy():
            return np.ascontiguousarray(base.tensor(initial.source), np.float32)
        case RowNorms():
            return _row_norms(base.tensor(initial.source))
        case Principal():
            return _principal(initial, shape, seed, base)
        case Tokens():
            return _token_rows(initial, name, shape[0], seed, base)
        case KeysValues():
            tokens = base.encode(initial.text, special=True)[: shape[0]]
            if (rest := shape[0] - len(tokens)) > 0:
                tokens += _repeated(initial.text, rest, base)
            return base.keys_values(tokens)


def reads_text(initial: Initial) -> bool:
    """Return whether a tensor starts from the tokens of a text."""
    return isinstance(initial, KeysValues) or bool(isinstance(initial, Tokens) and initial.text)


def text_length(initial: Initial, shape: tuple[int, ...]) -> int:
    """Return how many tokens the base computes on for the start of a tensor."""
    return shape[0] if isinstance(initial, KeysValues) else 0


def generator(name: str, seed: int | str) -> np.random.Generator:
    """Return the random numbers that belong to a name."""
    import numpy as np

    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def _row_norms(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    squares = np.einsum("nk,nk->n", matrix, matrix, dtype=np.float64, casting="same_kind")
    norms: NDArray[np.float32] = np.sqrt(squares).astype(np.float32)
    return norms


def _principal(
    initial: Principal, shape: tuple[int, ...], seed: int, base: Base
) -> NDArray[np.float32]:
    import numpy as np

    left = initial.side == "left"
    rank = shape[1] if left else shape[0]
    u, s, v = _largest(base.tensor(initial.source), rank, generator(initial.source, seed))
    root = np.sqrt(s / initial.scale)
    factor = np.zeros(shape, np.float32)
    if left:
        factor[:, : len(s)] = u * root
    else:
        factor[: len(s)] = root[:, None] * v
    return factor


def _largest(
    matrix: NDArray[np.float32], rank: int, draw: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the largest singular triplets: U (N, R), S (R), V (R, K).

    R is the rank, or the smaller side of the matrix where that is less.

    Large matrices by subspace iteration from a random start (Halko et al. 2011, algorithm 4.4).
    """
    import numpy as np

    if min(matrix.shape) <= EXACT_SVD:
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]
    sample = draw.standard_normal((matrix.shape[1], rank + 10)).astype(np.float32)
    basis, _ = np.linalg.qr(matrix @ sample)
    for _ in range(4):
        across, _ = np.linalg.qr(matrix.T @ basis)
        basis, _ = np.linalg.qr(matrix @ across)
    u, s, v = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], v[:rank]


def _token_rows(
    initial: Tokens, name: str, length: int, seed: int, base: Base
) -> NDArray[np.float32]:
    import numpy as np

    # the tokens of byte-pair vocabularies are numbered from the most common on
    common = min(COMMON_TOKENS, base.vocabulary)
    sampled = generator(name, seed).choice(common, length, replace=length > common).tolist()
    match initial.choose:
        case "vocabulary":
            rows = base.rows(sampled)
        case "text":
            rows = base.rows(_repeated(initial.text, length, base))
        case "labels":
            words = [label for label in map(str.strip, initial.text.split(",")) if label][:length]
            means = [base.rows(_tokens(word, base)).mean(0, keepdims=True) for word in words]
            rest = sampled[len(means) :]
            rows = np.concatenate([*means, base.rows(rest)] if rest else means)
    return (rows * initial.factor).astype(np.float32)


def _repeated(text: str, length: int, base: Base) -> list[int]:
    tokens = _tokens(text, base)
    return [tokens[i % len(tokens)] for i in range(length)]


def _tokens(text: str, base: Base) -> list[int]:
    """Return the tokens of a text that something starts from, of which there must be one."""
    if tokens := base.encode(text):
        return tokens
    raise UsageError(
        f"This model's tokenizer makes no tokens of {short(text)}, so nothing can start from it. "
        "Give another text, or leave it out."
    )
