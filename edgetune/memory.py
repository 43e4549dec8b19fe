"""Bytes of a run as pure functions of the model's shape and a choice.

Symbols: D hidden size, F FFN width, H heads, h head dim, KV = kv_heads * h, L layers,
V vocabulary, T tokens of a micro-batch, c bytes of a number in the compute type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgetune.choice import Choice
from edgetune.methods.base import Method
from edgetune.methods.targets import Target
from edgetune.shape import ModelShape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

WEIGHT_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0, "q8": 1.0625, "q4": 0.5625}
"""Bytes a quantized weight takes, its scales included."""

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw-8bit": 2.03, "paged-adamw-8bit": 2.03}
"""Bytes of optimizer state a trained parameter takes."""

RUNTIME_BYTES = {"cpu": 400_000_000, "cuda": 600_000_000, "mlx": 400_000_000}
"""Interpreter, libraries and the device's context."""

HEAD_SLICE = 8192
"""Vocabulary rows of a 16-bit head that are widened at a time when computing in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where the bytes are at the peak of training."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    workspace: int
    runtime: int

    @property
    def total(self) -> int:
        """The peak."""
        lasting = self.weights + self.adapter + self.gradients + self.optimizer + self.runtime
        return lasting + self.activations + self.loss + self.workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """The peak of each phase of a run's life, in bytes."""

    load: int
    train: int
    evaluate: int
    save: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a run needs, in bytes."""

    peak_bytes: int
    phases: Phases
    parts: Parts


def estimate(
    shape: ModelShape, choice: Choice, kind: Literal["cuda", "cpu", "mlx"]
) -> MemoryEstimate:
    """Return what a run of ``choice`` needs on a device of ``kind``."""
    trained = choice.method.parameters(shape)
    weights, runtime = weight_bytes(shape, choice), RUNTIME_BYTES[kind]
    optimizer = int(trained * OPTIMIZER_BYTES[choice.optimizer])
    activations, loss, workspace = _step(shape, choice)
    parts = Parts(
        weights=weights,
        adapter=4 * trained,
        gradients=4 * trained,
        optimizer=optimizer,
        activations=activations,
        loss=loss,
        workspace=workspace,
        runtime=runtime,
    )
    resting = weights + 4 * trained + optimizer + runtime
    phases = Phases(
        load=weights + largest_tensor(shape) + runtime,
        train=parts.total,
        evaluate=resting + _evaluation(shape, choice),
        save=resting + 4 * trained + optimizer,
    )
    peak = max(phases.load, phases.train, phases.evaluate, phases.save)
    return MemoryEstimate(peak_bytes=peak, phases=phases, parts=parts)


def weight_bytes(shape: ModelShape, choice: Choice) -> int:
    """Return the bytes of the frozen weights that are in memory at one time."""
    stored = BYTES[shape.dtype]
    outer = stored * sum(tensor.size for tensor in shape.outer_tensors())
    linears = shape.block_linear_parameters
    others = sum(tensor.size for tensor in shape.block_tensors(0)) - linears
    block = linears * WEIGHT_BYTES.get(choice.quantization, stored) + others * stored
    present = shape.layers if choice.placement == "resident" else 2
    return int(outer + block * min(present, shape.layers))


def largest_tensor(shape: ModelShape) -> int:
    """Return the bytes of the largest tensor as it is stored."""
    return BYTES[shape.dtype] * max(tensor.size for tensor in shape.tensors())


def saved_per_token(shape: ModelShape, method: Method, layer: int, compute: int) -> int:
    """Return the bytes that one token keeps of a block for the backward pass."""
    heads = shape.heads * shape.head_dim
    keys_values = 2 * shape.kv_heads * shape.head_dim
    gated = "gate" in shape.linear_by_role or "gate_up" in shape.linear_by_role
    ffn = shape.ffn_size * (2 if gated else 1)
    targets: list[Target] = method.select(shape) if hasattr(method, "select") else []
    here = [target.linear for target in targets if target.layer == layer]
    inputs = {_input_name(linear.role): linear.inputs for linear in here}
    rank = getattr(method, "rank", 0) * len(here)
    kept = 2 * shape.hidden_size + 2 * heads + keys_values + ffn + sum(inputs.values()) + rank
    return compute * kept + 4 * shape.heads


def _input_name(role: str) -> str:
    """Name what a projection reads: projections that read the same tensor share it."""
    if role in {"q", "k", "v", "qkv"}:
        return "attention"
    return "mlp" if role in {"gate", "up", "gate_up"} else role


def _step(shape: ModelShape, choice: Choice) -> tuple[int, int, int]:
    """Return activations, loss and workspace at the moment when their sum is the largest."""
    compute, tokens, hidden = BYTES[choice.compute_dtype], choice.tokens, shape.hidden_size
    saved = [
        tokens * saved_per_token(shape, choice.method, layer, compute)
        for layer in range(shape.layers)
    ]
    checkpointed = choice.checkpointing.layers
    entry = compute * hidden * tokens
    kept = checkpointed * entry + sum(saved[checkpointed:])
    loss = loss_bytes(shape, choice)
    matrix = compute * max(linear.inputs * linear.outputs for linear in shape.linears)
    transient = compute * tokens * (3 * shape.ffn_size + 2 * hidden)
    block = max(saved) if checkpointed else 0
    if loss > block + matrix + transient:
        return kept, loss, 0
    return kept + block, 0, matrix + transient


def loss_bytes(shape: ModelShape, choice: Choice) -> int:
    """Return the peak of the chunked loss: logits and their gradient, hidden states, head slice."""
    compute = BYTES[choice.compute_dtype]
    chunk = min(choice.loss_chunk, choice.tokens)
    logits = 4 * chunk * shape.vocabulary * (2 if shape.logit_softcap is None else 3)
    hidden = (3 * compute * choice.tokens + 4 * chunk) * shape.hidden_size
    widened = 0 if compute == BYTES[shape.dtype] else min(HEAD_SLICE, shape.vocabulary)
    return logits + hidden + compute * widened * shape.hidden_size


def _evaluation(shape: ModelShape, choice: Choice) -> int:
    compute = BYTES[choice.compute_dtype]
    matrix = compute * max(linear.inputs * linear.outputs for linear in shape.linears)
    block = compute * choice.tokens * (3 * shape.ffn_size + 4 * shape.hidden_size)
    return max(loss_bytes(shape, choice), matrix + block)
