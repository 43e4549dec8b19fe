"""Measuring a device: its rates, and how well they explain real steps of small models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from edgetune.backend import load_backend
from edgetune.data.batch import full_batch
from edgetune.device import Device
from edgetune.device.disk import read_bandwidth
from edgetune.errors import UsageError
from edgetune.model import LocalModel, open_model
from edgetune.planning import Plan, make_plan
from edgetune.planning.capability import capability_of
from edgetune.settings.spec import Checkpointing
from edgetune.speed import Measurements, TimeModel, rates_of, save_measurements, way
from edgetune.workflows.opening import open_session
from edgetune.workflows.random_model import write_random_model

BLOCKS, HEAD = {"num_hidden_layers": 4, "vocab_size": 1024}, {
    "num_hidden_layers": 1, "vocab_size": 32768,
}  # fmt: skip
"""A model that is nearly all blocks, and one that is mostly the loss."""

LIKELY = (0.3, 10.0)
"""Measured over predicted seconds beyond which a measurement is taken for an accident."""

ROWS, CONTEXT = 2, 256
REPEATS = 4
CONFIG = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def measure(device: Device, say: Callable[[str], None] = lambda _: None) -> Measurements:
    """Measure a device of this machine, keep the result for later plans, and return it.

    Raises:
        UsageError: if its backend cannot be used here.
    """
    backend = load_backend(device.backend)
    usable = backend.usable()
    if not usable.value or not device.here:
        because = usable.because if device.here else "it is a profile, not a device of this machine"
        raise UsageError(f"{device.name} cannot be measured: {because}.")
    say("products, conversions and bandwidths")
    found = replace(backend.measure(device), disk_bandwidth=read_bandwidth())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = _with_blocks(device, found, _model(folder / "blocks", BLOCKS), say)
        found = _with_head(device, found, _model(folder / "head", HEAD), say)
    save_measurements(found)
    return found


def _model(folder: Path, sizes: Mapping[str, int]) -> LocalModel:
    write_random_model(folder, {**CONFIG, **sizes})
    return open_model(str(folder))


def _with_blocks(
    device: Device, found: Measurements, model: LocalModel, say: Callable[[str], None]
) -> Measurements:
    """Return the measurements with what real blocks take over what the rates predict."""
    block, capability = {}, capability_of(device)
    for quantization in capability.quantizations:
        for dtype in capability.compute_dtypes:
            say(f"blocks with {quantization} weights in {dtype}")
            plan = _plan(device, model, quantization, dtype)
            time = _model_of(plan, device, found)
            rest = time.seconds(plan.choice) - time.blocks(plan.choice)
            share = (_step(plan, model) - rest) / time.blocks(plan.choice)
            block[way(quantization, dtype)] = _likely(share)
    return replace(found, block=block)


def _with_head(
    device: Device, found: Measurements, model: LocalModel, say: Callable[[str], None]
) -> Measurements:
    """Return the measurements with what the loss takes over what the rates predict."""
    head: dict[str, float] = {}
    capability = capability_of(device)
    for dtype in capability.compute_dtypes:
        say(f"the loss in {dtype}")
        plan = _plan(device, model, "none", dtype)
        time = _model_of(plan, device, found)
        rest = time.seconds(plan.choice) - time.head(plan.choice)
        share = _likely((_step(plan, model) - rest) / time.head(plan.choice))
        head |= {way(quantization, dtype): share for quantization in capability.quantizations}
    return replace(found, head=head)


def _model_of(plan: Plan, device: Device, found: Measurements) -> TimeModel:
    return TimeModel(plan.shape, plan.choice.method, rates_of(device, found))


def _likely(share: float) -> float:
    return min(max(share, LIKELY[0]), LIKELY[1])


def _plan(device: Device, model: LocalModel, quantization: str, dtype: str) -> Plan:
    fixed = {
        "quantization": quantization, "compute_dtype": dtype, "context": CONTEXT,
        "micro_batch": ROWS, "accumulation": 1, "placement": "resident", "optimizer": "adamw",
        "checkpointing": Checkpointing(layers=0), "loss_chunk": 256,
    }  # fmt: skip
    return make_plan(device, model.ref, model.shape, fixed=fixed, training={})


def _step(plan: Plan, model: LocalModel) -> float:
    """Return the shortest seconds of a step; the first one warms up."""
    session = open_session(plan, model)
    batch = full_batch(ROWS, CONTEXT, model.shape.vocabulary)
    best = float("inf")
    for _ in range(REPEATS + 1):
        begun = perf_counter()
        session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-4)
        best = min(best, perf_counter() - begun)
    session.close()
    return best
