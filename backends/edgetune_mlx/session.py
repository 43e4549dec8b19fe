"""An opened model: steps, evaluation, generation, saved state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from typing import Any

import mlx.core as mx
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
    Tensors,
    TornStateError,
    scored_result,
)
from edgetune.data.answers import Scoring
from edgetune.data.batch import MicroBatch
from edgetune.errors import DivergedError
from edgetune.methods.adapted import Adapted
from edgetune.methods.base import Method
from edgetune.network.adaptation import BASE, Adaptation
from edgetune.network.mixed import mixed
from edgetune.objectives import objective_of
from edgetune.run_spec import RunSpec
from edgetune.shape import ModelShape
from edgetune.together import alike, in_halves, step_sums, together
from edgetune.world import ALONE, World
from edgetune_mlx.engine import Engine
from edgetune_mlx.generate import new_cache, read
from edgetune_mlx.gradients import Gradients, add_back, add_up, set_aside
from edgetune_mlx.loss import Sums
from edgetune_mlx.optimizer import AdamW, clipping
from edgetune_mlx.out_of_memory import out_of_memory
from edgetune_mlx.streaming import StreamedBlocks
from edgetune_mlx.tensors import (
    TRAINED,
    loaded_parameters,
    saved_tensors,
    taken_over,
    unsaved_tensors,
)
from edgetune_mlx.token_layout import Cache

STEP = "step"
"""Name of the step counter among the optimizer's tensors."""


class MlxSession:
    """One model, one adaptation, one optimizer."""

    def __init__(
        self, spec: RunSpec, engine: Engine, method: Adapted[mx.array], world: World = ALONE
    ) -> None:
        """Take over a loaded engine and a method with its tensors."""
        self.spec = spec
        self._world = world
        self.engine = engine
        self.method = method
        self.objective = objective_of(spec.training)
        self.steps = 0
        self._attached = Attached[Adapted[mx.array]]()
        self.optimizer = AdamW(method.sizes, method.rates, spec.training.weight_decay)

    def step(
        self, micro_batches: Sequence[MicroBatch], *, loss_tokens: int, learning_rate: float
    ) -> StepResult:
        """Take one optimizer step; see :class:`edgetune.backend.Session`."""
        number, world = self.steps + 1, self._world
        with self._within_memory():
            with together(world), out_of_memory():
                scoring = self._scoring()
                own, grads = self._accumulate(micro_batches, 1.0 / loss_tokens, scoring)
                self.optimizer.prepare()
            with alike(world), out_of_memory():
                loss, metrics = step_sums(world, own, loss_tokens, scoring)
                add_up(grads, self.method.tensors, world)
                clip, norm = clipping(grads, self.spec.training.max_grad_norm)
                if not (isfinite(loss) and isfinite(norm)):
                    raise DivergedError(f"loss {loss:.4g}, gradient norm {norm:.4g}")
                result = StepResult(loss=loss, grad_norm=norm, metrics=metrics)
                self.optimizer.update(self._get, self._put, grads, clip, learning_rate, number)
            self.steps = number
        return result

    def attach(self, name: str, method: Method, tensors: Tensors) -> None:
        """Hold a further adapter; see :class:`edgetune.backend.Session`."""
        saved, shape = method.on_disk(), self.method.shape
        with self._within_memory():
            self._attached.add(
                name, lambda: Adapted(saved, shape, loaded_parameters(saved, shape, tensors))
            )

    def detach(self, name: str) -> None:
        """Let go of an adapter that was attached."""
        self._attached.remove(name)

    def evaluate(
        self, micro_batches: Iterable[MicroBatch], *, adapter: str | None = DEFAULT_ADAPTER
    ) -> EvalResult:
        """Return summed losses; see :class:`edgetune.backend.Session`."""
        method, total = self._inference(adapter), EvalResult()
        with self._within_memory():
            for batch in micro_batches:
                if batch.answers:
                    total += self._scored(batch, method)
                else:
                    total += _result(self.engine.evaluate(batch, method), batch)
        return total

    def evaluate_rows(
        self, batch: MicroBatch, adapters: Sequence[str | None]
    ) -> Sequence[EvalResult]:
        """Return the loss of each row; see :class:`edgetune.backend.Session`."""
        method = mixed(self._each(adapters))
        with self._within_memory():
            found = self.engine.evaluate_rows(batch, method)
        return [_result(sums, batch.rows(i, i + 1)) for i, sums in enumerate(found)]

    @property
    def shape(self) -> ModelShape:
        """The model's."""
        return self.engine.decoder.shape

    def new_cache(self, adapter: str | None, capacity: int) -> Cache:
        """Return a cache for a row; see :class:`edgetune.backend.Session`."""
        with self._within_memory():
            return new_cache(self.engine.decoder, self._inference(adapter), capacity)

    def read(self, rows: Sequence[tuple[Any, Sequence[int]]]) -> NDArray[np.float32]:
        """Read each row's next tokens; see :class:`edgetune.backend.Session`."""
        with self._within_memory():
            logits = read(self.engine.decoder, self.engine.head, rows)
            return np.array(logits.astype(mx.float32))

    def logits(
        self, tokens: Sequence[int], *, adapter: str | None = DEFAULT_ADAPTER
    ) -> NDArray[np.float32]:
        """Return the logits (T, V) after each of T tokens."""
        with self._within_memory():
            return self.engine.logits(tokens, self._inference(adapter))

    def activations(self, batch: MicroBatch) -> NDArray[np.float32]:
        """Return the outputs of the blocks; see :class:`edgetune.backend.Session`."""
        with self._within_memory():
            return self.engine.activations(batch, self.method.drawing(None))

    def pull(self, batch: MicroBatch, pull: Pull) -> Tensors:
        """Return the gradients of what ``pull`` says; see :class:`edgetune.backend.Session`."""
        with self._within_memory():
            found, tensors = Gradients(), self.method.trained
            self.engine.pull(batch, self.method.drawing(None), pull, found)
            grads = {name: found.get(name, mx.zeros_like(x)) for name, x in tensors.items()}
            return {name: np.array(grad) for name, grad in grads.items()}

    def adapter_tensors(self, *, copied: bool = True) -> Tensors:
        """Return the tensors of the adapter's file by name."""
        with self._within_memory():
            return saved_tensors(self.method, copied=copied)

    def optimizer_tensors(self, *, copied: bool = True) -> Tensors:
        """Return the optimizer's state and the step counter, from which dropout is seeded."""
        with self._within_memory():
            return {
                STEP: np.array(self.steps, np.int64),
                **(self.optimizer.state(copied=copied) if self.steps else {}),
                **unsaved_tensors(self.method, copied=copied),
            }

    def restore(self, adapter: Tensors, optimizer: Tensors | None = None) -> None:
        """Take over saved tensors; see :class:`edgetune.backend.Session`."""
        state = dict(optimizer or {})
        unsaved = {name: state.pop(name) for name in list(state) if name.startswith(TRAINED)}
        with out_of_memory():
            restored = self.method.over(taken_over(self.method, adapter, unsaved))
            if optimizer is not None:
                steps = int(state.pop(STEP))
                self.optimizer.restore(state)
                self.steps = steps
            self.method = restored

    def kernels(self) -> str:
        """Return nothing: MLX's kernels compute."""
        return ""

    def only_kernels(self, told: str) -> None:
        """Change nothing: there are none of our own."""

    def memory(self) -> MemoryReading:
        """Return what MLX holds."""
        return self.engine.guard.reading()

    def close(self) -> None:
        """Let go of the model and restore MLX's limits."""
        guard = self.engine.guard
        if isinstance(blocks := self.engine.decoder.weights.blocks, StreamedBlocks):
            blocks.close()
        del self.engine, self.optimizer, self.method, self._attached, blocks
        guard.close()

    def _accumulate(
        self, micro_batches: Sequence[MicroBatch], scale: float, scoring: Scoring | None
    ) -> tuple[float, Gradients]:
        grads, engine = Gradients(), self.engine
        if scoring is not None:
            still = self.method.drawing(None)
            micro_batches = scoring.begin(micro_batches, lambda b: self.engine.losses(b, still))

        def accumulate(batch: MicroBatch) -> float:
            weigh = None if scoring is None else scoring.weigh(batch)
            method = self.method.drawing(f"{self.spec.training.seed}:{self.steps}", batch.first)
            return engine.gradients(batch, method, scale=scale, into=grads, weigh=weigh).loss

        loss = in_halves(
            micro_batches, accumulate, partial(set_aside, grads), partial(add_back, grads)
        )
        return loss if scoring is None else scoring.total.loss, grads

    def _scoring(self) -> Scoring | None:
        """Return what scores answers with nothing scored yet; None for plain language modelling."""
        if self.objective is None:
            return None
        return Scoring(self.objective, lambda batch: self.engine.losses(batch, BASE))

    def _scored(self, batch: MicroBatch, method: Adaptation[mx.array]) -> EvalResult:
        """Return what the objective says of a micro-batch."""
        scoring = self._scoring()
        assert scoring is not None
        losses = self.engine.losses(batch, method)
        return scored_result(scoring, batch, losses, is_base=method is BASE)

    @contextmanager
    def _within_memory(self) -> Iterator[None]:
        """Answer from whole steps only, and measure a peak of its own."""
        if self.optimizer.torn:
            raise TornStateError
        self.engine.guard.begin()
        try:
            with out_of_memory():
                yield
        except DeviceOutOfMemoryError:
            mx.clear_cache()
            if self.optimizer.torn:
                raise TornStateError from None
            raise

    def _get(self, name: str) -> mx.array:
        return self.method.tensors[name]

    def _put(self, name: str, tensor: mx.array) -> None:
        self.method = self.method.over({name: tensor})

    def _each(self, adapters: Sequence[str | None]) -> list[Adaptation[mx.array]]:
        """Return the adaptation of each row; rows with the same adapter have the same one."""
        once = {name: self._inference(name) for name in dict.fromkeys(adapters)}
        return [once[name] for name in adapters]

    def _inference(self, adapter: str | None) -> Adaptation[mx.array]:
        if adapter is None:
            return BASE
        return self.method if adapter == DEFAULT_ADAPTER else self._attached.named(adapter)


def _result(sums: Sums, batch: MicroBatch) -> EvalResult:
    rows = sum(map(len, batch.documents))
    return EvalResult(loss_sum=sums.loss, loss_tokens=sums.tokens, correct=sums.correct, rows=rows)
