"""An opened model: steps, evaluation, generation, saved state."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
from edgetune.errors import DivergedError, ModelError
from edgetune.plan import Plan
from edgetune_torch.adaptation import BASE, Adaptation
from edgetune_torch.engine import Engine
from edgetune_torch.generate import generate
from edgetune_torch.loss import Sums
from edgetune_torch.memory import read_memory
from edgetune_torch.optimizer import make_optimizer, restore_state, state_tensors

STEP = "step"
"""Name of the step counter among the optimizer's tensors."""


class TorchSession:
    """One model, one adaptation, one optimizer, on one device."""

    def __init__(self, plan: Plan, engine: Engine, method: Adaptation) -> None:
        """Take over a loaded engine."""
        self.plan = plan
        self.engine = engine
        self.method = method
        self.steps = 0
        self.optimizer = make_optimizer(
            plan.choice.optimizer, method.parameters, plan.training.weight_decay
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.engine.decoder.weights.embedding.device

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The trained tensors."""
        return self.method.parameters

    def step(
        self, micro_batches: Sequence[MicroBatch], *, loss_tokens: int, learning_rate: float
    ) -> StepResult:
        """Take one optimizer step; see :class:`edgetune.backend.Session`."""
        try:
            sums = self._accumulate(micro_batches, 1.0 / loss_tokens)
            norm = self._clip()
            loss = sums / loss_tokens
            if not (np.isfinite(loss) and np.isfinite(norm)):
                raise DivergedError(f"loss {loss}, gradient norm {norm}")
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self.steps += 1
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise DeviceOutOfMemoryError(str(error).splitlines()[0]) from None
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss=loss, grad_norm=norm)

    def evaluate(self, micro_batches: Iterable[MicroBatch], *, adapted: bool = True) -> EvalResult:
        """Return summed losses; see :class:`edgetune.backend.Session`."""
        method = self._inference(adapted)
        total, rows = Sums(), 0
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
        """Return the trained tensors by name."""
        return {
            name: parameter.detach().cpu().numpy().copy()
            for name, parameter in self.parameters.items()
        }

    def optimizer_tensors(self) -> Tensors:
        """Return the optimizer's state and the step counter, from which dropout is seeded."""
        return {
            STEP: np.array(self.steps, np.int64),
            **state_tensors(self.optimizer, self.parameters),
        }

    def restore(self, adapter: Tensors, optimizer: Tensors | None = None) -> None:
        """Take over saved tensors; see :class:`edgetune.backend.Session`."""
        _check(self.parameters, adapter)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(np.array(adapter[name])))
        if optimizer is not None:
            state = dict(optimizer)
            self.steps = int(state.pop(STEP))
            restore_state(self.optimizer, self.parameters, state)

    def memory(self) -> MemoryReading:
        """Return what is held of the device's memory."""
        return read_memory(self.device, self.plan.device.budget_bytes)

    def close(self) -> None:
        """Let go of the model."""
        del self.engine, self.optimizer, self.method
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _accumulate(self, micro_batches: Sequence[MicroBatch], scale: float) -> float:
        loss = 0.0
        for index, batch in enumerate(micro_batches):
            self.method.seed(f"{self.plan.training.seed}:{self.steps}:{index}")
            loss += self.engine.gradients(batch, self.method, scale=scale).loss
        return loss

    def _clip(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters.values(), self.plan.training.max_grad_norm
        )
        return float(norm)

    def _inference(self, adapted: bool) -> Adaptation:
        method = self.method if adapted else BASE
        method.seed(None)
        return method


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell an allocation that failed from other errors: on CPU torch raises a RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text


def _check(parameters: Mapping[str, Parameter], adapter: Mapping[str, NDArray[np.generic]]) -> None:
    wrong = [f"{name} is missing" for name in parameters if name not in adapter]
    wrong += [f"{name} is unknown" for name in adapter if name not in parameters]
    wrong += [
        f"{name} is {adapter[name].shape}, expected {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in adapter and adapter[name].shape != tuple(parameter.shape)
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ModelError(f"The adapter does not fit the plan: {'; '.join(wrong[:8])}{more}.")
