"""What no protocol shows: a backend's frozen weights and its gradients, one probe a backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetune.backend import Session
from edgetune.data.batch import MicroBatch

Arrays = dict[str, NDArray[np.float32]]


class Probe(Protocol):
    """Looks into a session."""

    def frozen(self) -> dict[str, bytes]:
        """Return the bytes of everything frozen, after checking that nothing has a gradient."""

    def trained(self) -> Arrays:
        """Return the trained tensors, those that are not saved too."""

    def gradients(self, batch: MicroBatch) -> Arrays:
        """Return the gradient of a micro-batch's summed loss."""

    def loss(self, batch: MicroBatch) -> float:
        """Return the summed loss; what a method holds constant in a step stays as it was."""

    def moved(self, direction: Arrays, length: float) -> Any:
        """Return a context in which the trained tensors are moved."""


def probe(name: str, session: Session) -> Probe:
    """Return the probe of a backend."""
    match name:
        case "torch":
            return TorchProbe(session)
        case "mlx":
            return MlxProbe(session)
        case other:
            raise NotImplementedError(f"the suite cannot look into a session of {other}")


class TorchProbe:
    """Looks into a session of the torch backend."""

    def __init__(self, session: Any) -> None:
        self.session = session
        session.method = session.method.drawing(None)

    def frozen(self) -> dict[str, bytes]:
        import torch

        weights = self.session.engine.decoder.weights
        found: dict[str, torch.Tensor] = {
            "embedding": weights.embedding.weight, "head": weights.head.weight,
            "final": weights.final_norm,
        }  # fmt: skip
        for layer in weights.blocks.walk(range(len(weights.blocks))):
            block = weights.blocks[layer]
            for group in (block.norms, block.norm_biases, block.biases):
                found |= {f"{layer}.{id(group)}.{role}": x for role, x in group.items()}
            for role, matrix in block.matrices.items():
                found |= {f"{layer}.{role}.{part}": x for part, x in matrix.parts.items()}
        for name, tensor in found.items():
            assert not tensor.requires_grad, name
            assert tensor.grad is None, name
        return {n: x.contiguous().view(torch.uint8).numpy().tobytes() for n, x in found.items()}

    def trained(self) -> Arrays:
        return {n: x.detach().numpy().copy() for n, x in self.session.method.trained.items()}

    def gradients(self, batch: MicroBatch) -> Arrays:
        for parameter in self.session.method.trained.values():
            parameter.grad = None
        self.session.engine.gradients(batch, self.session.method, scale=1.0)
        missing = [n for n, x in self.session.method.trained.items() if x.grad is None]
        assert not missing
        return {n: x.grad.numpy().copy() for n, x in self.session.method.trained.items()}

    def loss(self, batch: MicroBatch) -> float:
        return float(self.session.engine.evaluate(batch, self.session.method).loss)

    @contextmanager
    def moved(self, direction: Arrays, length: float) -> Iterator[None]:
        import torch

        before = self.trained()
        self._set({n: x + length * direction[n] for n, x in before.items()}, torch)
        yield
        self._set(before, torch)

    def _set(self, values: Arrays, torch: Any) -> None:
        with torch.no_grad():
            for name, parameter in self.session.method.trained.items():
                parameter.copy_(torch.from_numpy(values[name]))


class MlxProbe:
    """Looks into a session of the MLX backend."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def frozen(self) -> dict[str, bytes]:
        weights = self.session.engine.decoder.weights
        found = {
            "final": weights.final_norm,
            **{f"embedding.{part}": x for part, x in weights.embedding.parts.items()},
            **{f"head.{part}": x for part, x in weights.head.parts.items()},
        }
        for layer, block in enumerate(weights.blocks):
            for group in ("norms", "norm_biases", "biases"):
                found |= {f"{layer}.{group}.{n}": x for n, x in getattr(block, group).items()}
            for role, matrix in block.matrices.items():
                found |= {f"{layer}.{role}.{part}": x for part, x in matrix.parts.items()}
        return {name: np.array(x).tobytes() for name, x in found.items()}

    def trained(self) -> Arrays:
        method = self.session.method
        return {name: np.array(method.tensors[name]) for name in method.trained}

    def gradients(self, batch: MicroBatch) -> Arrays:
        grads: dict[str, Any] = {}
        self.session.engine.gradients(batch, self.session.method, scale=1.0, into=grads)
        assert grads.keys() == self.session.method.trained.keys()
        return {name: np.array(grad) for name, grad in grads.items()}

    def loss(self, batch: MicroBatch) -> float:
        return float(self.session.engine.evaluate(batch, self.session.method).loss)

    @contextmanager
    def moved(self, direction: Arrays, length: float) -> Iterator[None]:
        import mlx.core as mx

        method = self.session.method
        values = {n: mx.array(x + length * direction[n]) for n, x in self.trained().items()}
        moved = method.over(values)
        self.session.method = moved
        with _constant_norms(method):
            yield
        self.session.method = method


@contextmanager
def _constant_norms(method: Any) -> Iterator[None]:
    """Let DoRA's norms, which are constants of its gradient, stay those of ``method``."""
    from edgetune_mlx.ops import MlxOps

    def norms(ops: Any, key: Any, _: Any, __: Any, scale: float, kept: Any) -> Any:
        module = f"{method.shape.block(key[0])}{method.shape.blocks[key[0]].linear_by_role[key[1]].module}"
        pair = (method.tensors[f"{module}.lora_{part}.weight"] for part in "AB")
        return original(ops, key, *pair, scale, kept)

    original = MlxOps.row_norms
    MlxOps.row_norms = norms  # type: ignore[method-assign]
    try:
        yield
    finally:
        MlxOps.row_norms = original  # type: ignore[method-assign]
