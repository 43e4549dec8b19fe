"""An opened model: steps, evaluation, generation, saved state."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from math import isfinite
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from edgetune_torch.engine import Engine
from edgetune_torch.exchange import Exchange, pieces_of
from edgetune_torch.generate import new_cache, read
from edgetune_torch.gradients import Gradients
from edgetune_torch.kernel_use import leaving_out
from edgetune_torch.loss import Sums
from edgetune_torch.loss_scale import LossScale
from edgetune_torch.malloc import trim
from edgetune_torch.memory import MemoryWatch
from edgetune_torch.optimizer import AdamW
from edgetune_torch.out_of_memory import out_of_memory
from edgetune_torch.own_kernels import others, own_kernels
from edgetune_torch.tensors import (
    TRAINED,
    loaded_parameters,
    saved_tensors,
    take_over,
    unsaved_tensors,
)
from edgetune_torch.token_layout import Cache

STEP = "step"
"""Name of the step counter among the optimizer's tensors."""


class TorchSession:
    """One model, one adaptation, one optimizer, on one device."""

    def __init__(
        self,
        spec: RunSpec,
        engine: Engine,
        method: Adapted[Tensor],
        watch: MemoryWatch,
        held: ExitStack,
        world: World = ALONE,
    ) -> None:
        """Take over a loaded engine, and what is ``held`` until the session is closed."""
        self.spec = spec
        self._world = world
        self.engine = engine
        self.method = method
        self.objective = objective_of(spec.training)
        self.steps = 0
        self.loss_scale = LossScale(engine.decoder.dtype)
        self._watch = watch
        self._held = held
        self._left_out: frozenset[str] = frozenset()
        self._gradients: Gradients | None = None
        self._attached = Attached[Adapted[Tensor]]()
        sizes = {name: x.numel() for name, x in self.parameters.items()}
        self._pieces = pieces_of(sizes, method.shape) if world.size > 1 else []
        self._reading = WeakValueDictionary[str | None, Adaptation[Tensor]]()
        """Those that caches were made for: rows with the same adapter have the same one."""
        self.optimizer = AdamW(
            spec.choice.optimizer, method.trained, method.rates, spec.training.weight_decay
        )

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The trained tensors."""
        return self.method.trained

    def step(
        self, micro_batches: Sequence[MicroBatch], *, loss_tokens: int, learning_rate: float
    ) -> StepResult:
        """Take one optimizer step; see :class:`edgetune.backend.Session`."""
        world, scale = self._world, copy(self.loss_scale)
        self._reading.clear()
        with self._within_memory():
            try:
                with together(world), out_of_memory():
                    gradients = self._prepared()
                given = micro_batches, gradients, loss_tokens, learning_rate
                result, update = self._attempt(*given)
                while _overflowed(result) and self.loss_scale.halve():
                    gradients.end()
                    result, update = self._attempt(*given)
                with alike(world), out_of_memory():
                    if not (isfinite(result.loss) and isfinite(result.grad_norm)):
                        raise DivergedError(
                            f"loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}"
                        )
                    update()
                self.loss_scale.went_well()
                self.steps += 1
            except BaseException:
                self.loss_scale = scale
                self.engine.checkpoints.clear()  # a step with fewer rows needs their memory
                raise
            finally:
                if self._gradients is not None:
                    self._gradients.end()
                trim()
        return result

    def attach(self, name: str, method: Method, tensors: Tensors) -> None:
        """Hold a further adapter; see :class:`edgetune.backend.Session`."""
        saved, shape, device = method.on_disk(), self.method.shape, self.engine.device
        with out_of_memory():
            self._attached.add(
                name,
                lambda: Adapted(saved, shape, loaded_parameters(saved, shape, tensors, device)),
            )

    def detach(self, name: str) -> None:
        """Let go of an adapter that was attached."""
        self._attached.remove(name)
        self._reading.pop(name, None)

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
        method = self._reading.get(adapter)
        if method is None:
            method = self._reading[adapter] = self._inference(adapter)
        with self._within_memory():
            return new_cache(self.engine.decoder, method, capacity)

    def read(self, rows: Sequence[tuple[Any, Sequence[int]]]) -> NDArray[np.float32]:
        """Read each row's next tokens; see :class:`edgetune.backend.Session`."""
        engine = self.engine
        with self._within_memory():
            logits: NDArray[np.float32] = (
                read(engine.decoder, engine.head, rows).float().cpu().numpy()
            )
        return logits

    def logits(
        self, tokens: Sequence[int], *, adapter: str | None = DEFAULT_ADAPTER
    ) -> NDArray[np.float32]:
        """Return the logits (T, V) after each of T tokens."""
        with self._within_memory():
            logits: NDArray[np.float32] = (
                self.engine.logits(tokens, self._inference(adapter)).cpu().numpy()
            )
        return logits

    def activations(self, batch: MicroBatch) -> NDArray[np.float32]:
        """Return the outputs of the blocks; see :class:`edgetune.backend.Session`."""
        with self._within_memory():
            return self.engine.activations(batch, self.method.drawing(None))

    def pull(self, batch: MicroBatch, pull: Pull) -> Tensors:
        """Return the gradients of what ``pull`` says; see :class:`edgetune.backend.Session`."""
        with self._within_memory():
            if self._gradients is None:
                self._gradients = Gradients(self.parameters)
            self._gradients.begin()
            try:
                self.engine.pull(batch, self.method.drawing(None), pull)
                return {name: x.cpu().numpy().copy() for name, x in self._gradients.views.items()}
            finally:
                self.engine.checkpoints.clear()
                self._gradients.end()

    def adapter_tensors(self, *, copied: bool = True) -> Tensors:
        """Return the tensors of the adapter's file by name."""
        trim()  # copies are made, and no product in which the process is looked at
        with self._within_memory():
            return saved_tensors(self.method, copied=copied)

    def optimizer_tensors(self, *, copied: bool = True) -> Tensors:
        """Return the optimizer's state and the step counter, from which dropout is seeded."""
        trim()
        with self._within_memory():
            return {
                STEP: np.array(self.steps, np.int64),
                **self.loss_scale.state(),
                **(self.optimizer.state(copied=copied) if self.steps else {}),
                **unsaved_tensors(self.method, copied=copied),
            }

    def restore(self, adapter: Tensors, optimizer: Tensors | None = None) -> None:
        """Take over saved tensors; see :class:`edgetune.backend.Session`."""
        state = dict(optimizer or {})
        unsaved = {name: state.pop(name) for name in list(state) if name.startswith(TRAINED)}
        self._reading.clear()
        try:
            with out_of_memory():
                take_over(self.method, adapter, unsaved)
                if optimizer is not None:
                    self.optimizer.torn = True  # until the optimizer's state fits, too
                    self.steps = int(state.pop(STEP))
                    self.loss_scale.take(state)
                    self.optimizer.restore(state)
        except DeviceOutOfMemoryError:
            self.optimizer.torn = True
            raise

    def kernels(self) -> str:
        """Return which kernels of our own compute."""
        return own_kernels(self.engine.device, self.engine.decoder.dtype, self._left_out)

    def only_kernels(self, told: str) -> None:
        """Compute with no kernels but these; see :class:`edgetune.backend.Session`."""
        self._left_out |= others(told)

    def memory(self) -> MemoryReading:
        """Return what is held of the device's memory."""
        return self._watch.read()

    def close(self) -> None:
        """Let go of the model, its files and threads, and of the limit on memory."""
        self._held.close()
        del self.engine, self.optimizer, self.method, self._gradients, self._attached
        gc.collect()
        trim()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _within_memory(self) -> Iterator[None]:
        """Answer from whole steps only, and name an allocation that failed as what it is."""
        if self.optimizer.torn:
            raise TornStateError
        try:
            with out_of_memory(), leaving_out(self._left_out):
                yield
        except DeviceOutOfMemoryError:
            if self.optimizer.torn:
                raise TornStateError from None
            raise

    def _prepared(self) -> Gradients:
        """Return the gradients; all that a step needs to keep exists then."""
        if self._gradients is None:
            self._gradients = Gradients(self.parameters)
        self.optimizer.prepare()
        return self._gradients

    def _attempt(
        self,
        micro_batches: Sequence[MicroBatch],
        gradients: Gradients,
        loss_tokens: int,
        learning_rate: float,
    ) -> tuple[StepResult, Callable[[], None]]:
        """Compute clipped gradients; return what to say of them, and what updates by them."""
        world = self._world
        with together(world), out_of_memory():
            gradients.begin()
            scoring = self._scoring()
            with self._exchanged(gradients) as done:
                own = self._accumulate(micro_batches, gradients, loss_tokens, scoring, done)
                update = self.optimizer.update(learning_rate, self.steps + 1)
        with alike(world), out_of_memory():
            loss, metrics = step_sums(world, own, loss_tokens, scoring)
            norm = gradients.clip(self.spec.training.max_grad_norm, self.loss_scale.value)
        return StepResult(loss=loss, grad_norm=norm, metrics=metrics), update

    def _accumulate(
        self,
        micro_batches: Sequence[MicroBatch],
        gradients: Gradients,
        loss_tokens: int,
        scoring: Scoring | None,
        done: Callable[[int], None] | None,
    ) -> float:
        """Add the gradients up and return the loss; ``done`` is told the blocks of the last of them."""
        if scoring is not None:
            still = self.method.drawing(None)
            micro_batches = scoring.begin(micro_batches, lambda b: self.engine.losses(b, still))

        scale = self.loss_scale.value / loss_tokens
        drawing = self.method.drawing(f"{self.spec.training.seed}:{self.steps}")

        def accumulate(batch: MicroBatch) -> float:
            weigh = None if scoring is None else scoring.weigh(batch)
            told, method = done if batch is last else None, drawing.from_row(batch.first)
            return self.engine.gradients(batch, method, scale=scale, weigh=weigh, done=told).loss

        whole = micro_batches and not any(batch.halves for batch in micro_batches)
        last = micro_batches[-1] if whole else None
        loss = in_halves(micro_batches, accumulate, gradients.set_aside, gradients.add_back)
        return loss if scoring is None else scoring.total.loss

    @contextmanager
    def _exchanged(self, gradients: Gradients) -> Iterator[Callable[[int], None] | None]:
        """Add gradients up over the ranks, from when they are final on; yield whom to tell that."""
        if self._world.size == 1:
            yield None
            return
        exchange = Exchange(self._world, gradients.flat, self._pieces)
        try:
            yield exchange.done
        except Exception:
            exchange.finish()
            raise
        exchange.finish()

    def _scoring(self) -> Scoring | None:
        """Return what scores answers with nothing scored yet; None for plain language modelling."""
        if self.objective is None:
            return None
        return Scoring(self.objective, lambda batch: self.engine.losses(batch, BASE))

    def _scored(self, batch: MicroBatch, method: Adaptation[Tensor]) -> EvalResult:
        """Return what the objective says of a micro-batch."""
        scoring = self._scoring()
        assert scoring is not None
        losses = self.engine.losses(batch, method)
        return scored_result(scoring, batch, losses, is_base=method is BASE)

    def _each(self, adapters: Sequence[str | None]) -> list[Adaptation[Tensor]]:
        """Return the adaptation of each row; rows with the same adapter have the same one."""
        once = {name: self._inference(name) for name in dict.fromkeys(adapters)}
        return [once[name] for name in adapters]

    def _inference(self, adapter: str | None) -> Adaptation[Tensor]:
        if adapter is None:
            return BASE
        method = self.method if adapter == DEFAULT_ADAPTER else self._attached.named(adapter)
        return method.drawing(None)


def _overflowed(result: StepResult) -> bool:
    return isfinite(result.loss) and not isfinite(result.grad_norm)


def _result(sums: Sums, batch: MicroBatch) -> EvalResult:
    rows = sum(map(len, batch.documents))
    return EvalResult(loss_sum=sums.loss, loss_tokens=sums.tokens, correct=sums.correct, rows=rows)
