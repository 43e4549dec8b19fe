"""Measuring a device: its rates, and how well they explain real steps of small models."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from time import time

import psutil

from edgetune.backend import load_backend
from edgetune.data.batch import full_batch
from edgetune.device import Device, read_device
from edgetune.device.capability import capability_of
from edgetune.device.disk import read_bandwidth
from edgetune.model import LocalModel, open_model
from edgetune.planning import Plan, make_plan
from edgetune.settings.spec import Checkpointing
from edgetune.speed import (
    Experience,
    Measurements,
    TimeModel,
    rates_of,
    save_measurements,
    settings_of,
    shortest_seconds,
    way,
)
from edgetune.workflows.opening import open_session
from edgetune.workflows.random_model import write_random_model

BLOCKS, HEAD = {"num_hidden_layers": 2, "vocab_size": 512}, {
    "num_hidden_layers": 1, "vocab_size": 16384,
}  # fmt: skip
"""A model that is nearly all blocks, and one that is mostly the loss."""

NARROW = {
    **BLOCKS, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
"""Blocks whose operations are so small that threads hardly gain by sharing them."""

SMALL = {
    "num_hidden_layers": 2, "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
"""A model whose products are so small that a step is the issuing of its operations."""

LIKELY = (0.3, 10.0)
"""Measured over predicted seconds beyond which a measurement is taken for an accident."""

LEAST_OPERATION = 1e-6
"""Seconds that an operation takes at least."""

ROWS, CONTEXT = 2, 256
SMALL_CONTEXT = 16
STEPS_WITHIN = 0.8
"""Seconds in which a step is tried again and again."""
DISK_PIECE = 1 << 26
"""Bytes that are written and read to know the disk."""
CONFIG = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def measure(device: Device) -> Measurements:
    """Measure a device that can be used here, keep the result for later plans, and return it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = _model(folder / "small", SMALL)
        plan = _plan(device, small, "none", "float32", rows=1, context=SMALL_CONTEXT)
        open_session(plan, small).close()
        opening = time() - psutil.Process().create_time()
        step = _step(plan, small)
        found = replace(
            load_backend(device.backend).measure(device),
            disk_bandwidth=read_bandwidth(size=DISK_PIECE),
            settings=settings_of(),
            opening=opening,
        )
        found = replace(found, operation=_operation(plan, step, _times(plan, device, found)))
        found = _with_blocks(device, found, _model(folder / "blocks", BLOCKS))
        found = _with_head(device, found, _model(folder / "head", HEAD))
        found = _with_widths(device, found, _model(folder / "narrow", NARROW))
    with suppress(OSError):
        save_measurements(found)  # without a cache it is measured again
    return found


def _operation(plan: Plan, step: float, without: TimeModel) -> float:
    """Return the seconds of an operation besides its work, from those of a small step."""
    rest = step - without.seconds(plan.choice)
    return max(LEAST_OPERATION, rest / without.launches(plan.choice))


def _model(folder: Path, sizes: Mapping[str, int]) -> LocalModel:
    write_random_model(folder, {**CONFIG, **sizes})
    return open_model(str(folder))


def _with_blocks(device: Device, found: Measurements, model: LocalModel) -> Measurements:
    """Return the measurements with what real blocks take over what the rates predict."""
    block, capability = {}, capability_of(device)
    for quantization in capability.quantizations:
        for dtype in capability.compute_dtypes:
            plan = _plan(device, model, quantization, dtype)
            times = _times(plan, device, found)
            rest = times.seconds(plan.choice) - times.touched(plan.choice)
            share = (_step(plan, model) - rest) / times.touched(plan.choice)
            block[way(quantization, dtype)] = _likely(share)
    return replace(found, block=block)


def _with_head(device: Device, found: Measurements, model: LocalModel) -> Measurements:
    """Return the measurements with what the loss takes over what the rates predict."""
    head: dict[str, float] = {}
    capability = capability_of(device)
    for dtype in capability.compute_dtypes:
        plan = _plan(device, model, "none", dtype)
        times = _times(plan, device, found)
        rest = times.seconds(plan.choice) - times.head(plan.choice)
        share = _likely((_step(plan, model) - rest) / times.head(plan.choice))
        head |= {way(quantization, dtype): share for quantization in capability.quantizations}
    return replace(found, head=head)


def _with_widths(device: Device, found: Measurements, narrow: LocalModel) -> Measurements:
    """Return the measurements with what steps take of what they predict at another width."""
    hidden, capability = CONFIG["hidden_size"], capability_of(device)
    assert isinstance(hidden, int)
    told = []
    for quantization in capability.quantizations:
        for dtype in capability.compute_dtypes:
            plan, used = _plan(device, narrow, quantization, dtype), way(quantization, dtype)
            share = _step(plan, narrow) / _times(plan, device, found).seconds(plan.choice)
            told.append(Experience(way=used, hidden_size=hidden, share=1.0))
            told.append(
                Experience(way=used, hidden_size=plan.shape.hidden_size, share=_likely(share))
            )
    return replace(found, experience=tuple(told))


def _times(plan: Plan, device: Device, found: Measurements) -> TimeModel:
    return TimeModel(plan.shape, plan.choice.method, rates_of(device, found), plan.objective)


def _likely(share: float) -> float:
    return min(max(share, LIKELY[0]), LIKELY[1])


def _plan(
    device: Device,
    model: LocalModel,
    quantization: str,
    dtype: str,
    *,
    rows: int = ROWS,
    context: int = CONTEXT,
) -> Plan:
    fixed = {
        "quantization": quantization, "compute_dtype": dtype, "context": context,
        "micro_batch": rows, "accumulation": 1, "placement": "resident", "optimizer": "adamw",
        "checkpointing": Checkpointing(layers=0), "loss_chunk": 256,
    }  # fmt: skip
    return make_plan(device, model.ref, model.shape, fixed=fixed, training={})


def _step(plan: Plan, model: LocalModel) -> float:
    """Return the shortest seconds of a step."""
    choice = plan.choice
    batch = full_batch(choice.micro_batch, choice.context, model.shape.vocabulary)
    with closing(open_session(plan, model)) as session:

        def step() -> None:
            session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-4)

        return shortest_seconds(step, STEPS_WITHIN)


if __name__ == "__main__":
    # for a process of its own: what it loads and allocates ends with it
    sys.stdout.write(json.dumps(asdict(measure(read_device(sys.argv[1])))))
