"""A session in plain numpy: low-rank adaptation of a linear softmax model, gradients by hand.

The logits after a token t are ``(W + B A)[:, t]``. W (V, V) is frozen and random, A (r, V) and
B (V, r) are trained with AdamW. Legend: V tokens of the vocabulary, N positions under loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import (
    DEFAULT_ADAPTER,
    Attached,
    DeviceOutOfMemoryError,
    EvalResult,
    MemoryReading,
    Pull,
    StepResult,
)
from edgetune.data.batch import IGNORED, MicroBatch, answer_starts
from edgetune.errors import DivergedError
from edgetune.methods import Method, initial_value
from edgetune.methods.lora import Lora
from edgetune.model import shape_of
from edgetune.settings.spec import ADAMW

VOCABULARY = 16
CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": VOCABULARY,
    "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
SHAPE = shape_of(CONFIG)
METHOD = Lora(rank=3, targets=("q_proj",))
A, B = (tensor.name for tensor in METHOD.tensors(SHAPE))

Arrays = dict[str, NDArray[Any]]


@dataclass(slots=True)
class Reader:
    """A row that is read, with the tokens of it that are cached."""

    adapter: str | None
    capacity: int
    before: int = 0
    tokens: list[int] = field(default_factory=list)

    def cut(self, tokens: int) -> None:
        """Forget all but the first tokens."""
        del self.tokens[tokens:]

    def resize(self, capacity: int) -> None:
        """Have room for so many tokens."""
        self.capacity = capacity


class SoftmaxSession:
    """The protocol's reference; micro-batches of more rows than fit are out of memory."""

    def __init__(self, *, rows: int = 1000, evaluated_rows: int = 1000, seed: int = 0) -> None:
        """Start untrained; ``rows`` fit in a step, ``evaluated_rows`` in an evaluation."""
        self.base = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY))
        self.fits, self.evaluates = rows, evaluated_rows
        self.adapter: Arrays = {t.name: initial_value(t, seed) for t in METHOD.tensors(SHAPE)}
        self.moments: Arrays = {
            f"{name}.{part}": np.zeros_like(value)
            for name, value in self.adapter.items()
            for part in ("first", "second")
        }
        self.steps = 0
        self.attached: Attached[Arrays] = Attached()

    def step(
        self, micro_batches: Sequence[MicroBatch], *, loss_tokens: int, learning_rate: float
    ) -> StepResult:
        """Take one step of AdamW on the mean over ``loss_tokens``."""
        _check_rows(micro_batches, self.fits)
        loss, gradients = 0.0, dict.fromkeys(self.adapter, np.float64(0.0))
        with np.errstate(all="ignore"):
            for batch in micro_batches:
                part, found = self._gradients(batch)
                loss += part / loss_tokens
                gradients = {n: gradients[n] + g / loss_tokens for n, g in found.items()}
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
            if not math.isfinite(loss + norm):
                raise DivergedError(f"loss {loss}, gradient norm {norm}")
            self.steps += 1
            for name, gradient in gradients.items():
                self._update(name, gradient / max(1.0, norm), learning_rate)
        return StepResult(loss=loss, grad_norm=norm)

    def attach(self, name: str, method: Method, tensors: Mapping[str, Any]) -> None:
        """Hold a further adapter."""
        self.attached.add(name, lambda: {n: np.array(value) for n, value in tensors.items()})

    def detach(self, name: str) -> None:
        """Let go of an adapter."""
        self.attached.remove(name)

    def evaluate(
        self, micro_batches: Iterable[MicroBatch], *, adapter: str | None = DEFAULT_ADAPTER
    ) -> EvalResult:
        """Return summed losses."""
        total = EvalResult()
        for batch in micro_batches:
            _check_rows([batch], self.evaluates)
            inputs, targets = _pairs(batch)
            p = self._probabilities(inputs, adapter)
            with np.errstate(all="ignore"):
                losses = -np.log(p[np.arange(len(targets)), targets])
            total += EvalResult(
                loss_sum=float(losses.sum()),
                loss_tokens=len(targets),
                correct=int((p.argmax(-1) == targets).sum()),
                rows=len(batch.tokens),
            )
        return total

    def evaluate_rows(
        self, batch: MicroBatch, adapters: Sequence[str | None]
    ) -> Sequence[EvalResult]:
        """Return the losses of each row."""
        rows = (batch.rows(i, i + 1) for i in range(len(batch.tokens)))
        return [self.evaluate([row], adapter=n) for row, n in zip(rows, adapters, strict=True)]

    shape = SHAPE

    def new_cache(self, adapter: str | None, capacity: int) -> Reader:
        """Return who reads a row: only its last token matters."""
        return Reader(adapter, capacity)

    def read(self, rows: Sequence[tuple[Any, Sequence[int]]]) -> NDArray[np.float32]:
        """Return the logits after the last token of each row."""
        for reader, tokens in rows:
            reader.tokens.extend(tokens)
            if len(reader.tokens) > reader.capacity:
                raise DeviceOutOfMemoryError("the cache is full")
        return np.stack(
            [self.logits(tokens[-1:], adapter=reader.adapter)[0] for reader, tokens in rows]
        )

    def logits(
        self, tokens: Sequence[int], *, adapter: str | None = DEFAULT_ADAPTER
    ) -> NDArray[np.float32]:
        """Return the logits (T, V) after each of T tokens."""
        return (self.base[:, list(tokens)] + self._added(adapter, tokens)).T.astype(np.float32)

    def activations(self, batch: MicroBatch) -> NDArray[np.float32]:
        """Return the logits (1, B, V) before the answer of each row: the output of the only block."""
        return self.logits(_before_answers(batch))[None]

    def pull(self, batch: MicroBatch, pull: Pull) -> Arrays:
        """Return the gradients of what is said of these logits."""
        inputs = _before_answers(batch)
        return self._by_adapter(np.array(inputs), pull(0, self.logits(inputs)))

    def adapter_tensors(self, *, copied: bool = True) -> Arrays:
        """Return copies of the trained tensors."""
        return {name: value.copy() for name, value in self.adapter.items()}

    def optimizer_tensors(self, *, copied: bool = True) -> Arrays:
        """Return copies of the optimizer's state."""
        moments = {name: value.copy() for name, value in self.moments.items()}
        return {"step": np.array(self.steps), **moments}

    def restore(
        self, adapter: Mapping[str, Any], optimizer: Mapping[str, Any] | None = None
    ) -> None:
        """Take over saved tensors."""
        self.adapter = {name: np.array(value) for name, value in adapter.items()}
        if optimizer is not None:
            self.moments = {name: np.array(optimizer[name]) for name in self.moments}
            self.steps = int(optimizer["step"])

    def memory(self) -> MemoryReading:
        """Return the bytes of all arrays."""
        held = [self.base, *self.adapter.values(), *self.moments.values()]
        size = sum(array.nbytes for array in held)
        return MemoryReading(current_bytes=size, peak_bytes=size, cache_bytes=0, limit_bytes=size)

    def close(self) -> None:
        """Hold nothing that must be given back."""

    def _probabilities(
        self, inputs: NDArray[Any], adapter: str | None = DEFAULT_ADAPTER
    ) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            logits = (self.base[:, inputs] + self._added(adapter, inputs)).T
            exponents = np.exp(logits - logits.max(-1, keepdims=True))
            return exponents / exponents.sum(-1, keepdims=True)

    def _added(self, adapter: str | None, inputs: Any) -> NDArray[Any]:
        """Return what an adapter adds to the logits (V, T) after tokens (T)."""
        if adapter is None:
            return np.zeros(())
        tensors = self.adapter if adapter == DEFAULT_ADAPTER else self.attached.named(adapter)
        found: NDArray[Any] = tensors[B].astype(float) @ tensors[A][:, list(inputs)]
        return found

    def _gradients(self, batch: MicroBatch) -> tuple[float, Arrays]:
        """Return the summed loss and its gradients: the logits' is p - onehot(target), (N, V)."""
        inputs, targets = _pairs(batch)
        p = self._probabilities(inputs)
        at = np.arange(len(targets)), targets
        loss = float(-np.log(p[at]).sum())
        p[at] -= 1
        return loss, self._by_adapter(inputs, p)

    def _by_adapter(self, inputs: NDArray[Any], grads: NDArray[Any]) -> Arrays:
        """Return the gradients by A and B, from those by the logits (N, V) after inputs (N,)."""
        by_input = np.zeros((VOCABULARY, VOCABULARY))
        np.add.at(by_input, inputs, grads)
        a, b = self.adapter[A].astype(float), self.adapter[B].astype(float)
        return {A: b.T @ by_input.T, B: by_input.T @ a.T}

    def _update(self, name: str, gradient: NDArray[Any], learning_rate: float) -> None:
        first, second = self.moments[f"{name}.first"], self.moments[f"{name}.second"]
        first += (1 - ADAMW.beta1) * (gradient - first)
        second += (1 - ADAMW.beta2) * (gradient**2 - second)
        mean = first / (1 - ADAMW.beta1**self.steps)
        spread = np.sqrt(second / (1 - ADAMW.beta2**self.steps))
        self.adapter[name] -= (learning_rate * mean / (spread + ADAMW.eps)).astype(np.float32)


def _pairs(batch: MicroBatch) -> tuple[NDArray[Any], NDArray[Any]]:
    under_loss = batch.targets != IGNORED
    return batch.tokens[under_loss], batch.targets[under_loss]


def _before_answers(batch: MicroBatch) -> list[int]:
    starts = answer_starts(batch.targets)
    return [int(row[start]) for row, start in zip(batch.tokens, starts, strict=True)]


def _check_rows(batches: Iterable[MicroBatch], fit: int) -> None:
    for batch in batches:
        if len(batch.tokens) > fit:
            raise DeviceOutOfMemoryError(f"{len(batch.tokens)} rows, {fit} fit")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The micro-batches of one step."""

    micro_batches: tuple[MicroBatch, ...]
    loss_tokens: int
    terms: int
    tokens: int
    epoch: int


class Rows:
    """Random rows of 3 to 12 tokens, a different share of each under loss."""

    def __init__(self, count: int, *, seed: int = 1) -> None:
        """Draw the rows: runs of tokens a fixed distance apart, which can be learned."""
        draw = np.random.default_rng(seed)
        lengths = draw.integers(3, 13, count)
        firsts = draw.integers(VOCABULARY, size=count)
        self.tokens = [
            (first + 3 * np.arange(length)) % VOCABULARY
            for first, length in zip(firsts, lengths, strict=True)
        ]
        self.learned = [int(draw.integers(1, length)) for length in lengths]

    def batch(self, start: int, stop: int) -> MicroBatch:
        """Return some rows as one micro-batch."""
        chosen = range(start, min(stop, len(self.tokens)))
        tokens = np.zeros((len(chosen), 12), np.int32)
        targets = np.full_like(tokens, IGNORED)
        for at, row in enumerate(chosen):
            values, learned = self.tokens[row], self.learned[row]
            tokens[at, : len(values)] = values
            targets[at, len(values) - 1 - learned : len(values) - 1] = values[-learned:]
        lengths = tuple((len(self.tokens[row]),) for row in chosen)
        return MicroBatch(tokens=tokens, targets=targets, documents=lengths)

    def steps_per_epoch(self, size: int = 8) -> int:
        """Return the number of steps of ``size`` rows."""
        return -(-len(self.tokens) // size)

    def step(self, number: int, size: int = 8) -> Data:
        """Return a step by its number: one micro-batch of the next ``size`` rows."""
        epoch, within = divmod(number, self.steps_per_epoch(size))
        batch = self.batch(within * size, (within + 1) * size)
        return Data(
            micro_batches=(batch,),
            loss_tokens=batch.loss_tokens,
            terms=batch.loss_tokens,
            tokens=batch.real_tokens,
            epoch=epoch,
        )

    def evaluation(self, size: int = 8) -> Iterator[MicroBatch]:
        """Yield all rows."""
        for start in range(0, len(self.tokens), size):
            yield self.batch(start, start + size)


TRAINED, HELD_OUT = Rows(40), Rows(10, seed=2)
