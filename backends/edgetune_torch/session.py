"""An opened model: steps, evaluation, generation, saved state."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import Parameter

from edgetune.backend import (
    DeviceOutOfMemoryError,
    EvalResult,
    GenerateOptions,
    MemoryReading,
    StepResult,
    Tensors,
)
from edgetune.data.batch import MicroBatch
from edgetune.errors import DivergedError
from edgetune.plan import Plan
from edgetune_torch.adaptation import BASE, Adaptation, Adapted
from edgetune_torch.engine import Engine
from edgetune_torch.generate import generate
from edgetune_torch.gradients import Gradients
from edgetune_torch.loss import Sums
from edgetune_torch.malloc import trim
from edgetune_torch.memory import MemoryWatch
from edgetune_torch.optimizer import AdamW
from edgetune_torch.tensors import TRAINED, saved_tensors, take_over, unsaved_tensors

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "could not create")
"""What an allocation on CPU that failed says: torch's, the C++ library's, oneDNN's."""

STEP = "step"
"""Name of the step counter among the optimizer's tensors."""


class TorchSession:
    """One model, one adaptation, one optimizer, on one device."""

    def __init__(
        self, plan: Plan, engine: Engine, method: Adapted, watch: MemoryWatch, held: ExitStack
    ) -> None:
        """Take over a loaded engine, and what is ``held`` until the session is closed."""
        self.plan = plan
        self.engine = engine
        self.method = method
        self.steps = 0
        self._watch = watch
        self._held = held
        self._gradients: Gradients | None = None
        self.optimizer = AdamW(
            plan.choice.optimizer, method.trained, method.rates, plan.training.weight_decay
        )

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The trained tensors."""
        return self.method.trained

    def step(
        self, micro_batches: Sequence[MicroBatch], *, loss_tokens: int, learning_rate: float
    ) -> StepResult:
        """Take one optimizer step; see :class:`edgetune.backend.Session`."""
        with _out_of_memory():
            gradients = self._prepared()
            try:
                loss = self._accumulate(micro_batches, 1.0 / loss_tokens) / loss_tokens
                norm = gradients.clip(self.plan.training.max_grad_norm)
                if not (isfinite(loss) and isfinite(norm)):
                    raise DivergedError(f"loss {loss}, gradient norm {norm}")
                self.optimizer.step(learning_rate, self.steps + 1)
                self.steps += 1
            finally:
                gradients.clear()
        return StepResult(loss=loss, grad_norm=norm)

    def evaluate(self, micro_batches: Iterable[MicroBatch], *, adapted: bool = True) -> EvalResult:
        """Return summed losses; see :class:`edgetune.backend.Session`."""
        method = self._inference(adapted)
        total, rows = Sums(), 0
        with _out_of_memory():
            for batch in micro_batches:
                part = self.engine.evaluate(batch, method)
                total.loss += part.loss
                total.tokens += part.tokens
                total.correct += part.correct
                rows += sum(len(documents) for documents in batch.documents)
        return EvalResult(
            loss_sum=total.loss, loss_tokens=total.tokens, correct=total.correct, rows=rows
        )

    def generate(
        self, prompt: Sequence[int], options: GenerateOptions, *, adapted: bool = True
    ) -> Iterator[int]:
        """Yield the tokens after a prompt; see :class:`edgetune.backend.Session`."""
        engine = self.engine
        return generate(engine.decoder, engine.head, self._inference(adapted), prompt, options)

    def logits(self, tokens: Sequence[int], *, adapted: bool = True) -> NDArray[np.float32]:
        """Return the logits (T, V) after each of T tokens."""
        logits: NDArray[np.float32] = (
            self.engine.logits(tokens, self._inference(adapted)).cpu().numpy()
        )
        return logits

    def adapter_tensors(self) -> Tensors:
        """Return the tensors of the adapter's file by name."""
        return saved_tensors(self.method)

    def optimizer_tensors(self) -> Tensors:
        """Return the optimizer's state and the step counter, from which dropout is seeded."""
        return {
            STEP: np.array(self.steps, np.int64),
            **self.optimizer.state(),
            **unsaved_tensors(self.method),
        }

    def restore(self, adapter: Tensors, optimizer: Tensors | None = None) -> None:
        """Take over saved tensors; see :class:`edgetune.backend.Session`."""
        state = dict(optimizer or {})
        unsaved = {name: state.pop(name) for name in list(state) if name.startswith(TRAINED)}
        take_over(self.method, adapter, unsaved)
        if optimizer is not None:
            self.steps = int(state.pop(STEP))
            self.optimizer.restore(state)

    def memory(self) -> MemoryReading:
        """Return what is held of the device's memory."""
        return self._watch.read()

    def close(self) -> None:
        """Let go of the model, its files and threads, and of the limit on memory."""
        self._held.close()
        del self.engine, self.optimizer, self.method, self._gradients
        gc.collect()
        trim()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _prepared(self) -> Gradients:
        """Return the gradients; all that a step needs to keep exists then."""
        if self._gradients is None:
            self._gradients = Gradients(self.parameters)
        self.optimizer.prepare()
        return self._gradients

    def _accumulate(self, micro_batches: Sequence[MicroBatch], scale: float) -> float:
        loss = 0.0
        for index, batch in enumerate(micro_batches):
            self.method.seed(f"{self.plan.training.seed}:{self.steps}", index)
            loss += self.engine.gradients(batch, self.method, scale=scale).loss
        return loss

    def _inference(self, adapted: bool) -> Adaptation:
        method = self.method if adapted else BASE
        method.seed(None)
        return method


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """Turn an allocation that failed into the protocol's error.

    On CPU torch raises a RuntimeError, whichever library asked for the memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        plain = not isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if plain and not any(sign in text for sign in OUT_OF_MEMORY):
            raise
        reason = (text.splitlines() or ["the system gave no more memory"])[0]
        raise DeviceOutOfMemoryError(reason) from None
