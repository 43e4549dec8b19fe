"""Outputs of blocks where answers begin, gradients that are asked of them, and prefixes tuned by them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from conformance.cases import CASES, Case
from conformance.sessions import ROW, Bench, lesson, loss_of, rows, step
from edgetune.backend import Session
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.insight.planes import Plane
from edgetune.model import LocalModel
from edgetune.workflows.robustness import Distance, Steering, steered

PREFIX = next(case for case in CASES if case.name == "prefix-direct")
PULLED = [
    x for x in CASES if x.name in ("prefix-direct", "lora-q+v", "prompt", "series", "full-last")
]
"""Methods that change all blocks, the input or the last block alone."""


def asked(count: int = 4) -> MicroBatch:
    """Return rows whose last answers begin at different places, behind others of a token."""
    batch = rows(count)
    targets = batch.targets.copy()
    for row in range(count):
        targets[row, 1 : 2 + row] = IGNORED
    return replace(batch, targets=targets)


def planes(session: Session, layers: int) -> list[Plane]:
    draw = np.random.default_rng(4)
    width = session.shape.hidden_size
    return [Plane.near(draw.normal(size=(6, width)), 0.9) for _ in range(layers)]


def distance(session: Session, batch: MicroBatch, near: list[Plane]) -> float:
    """Return the distance as it is found without a backward pass."""
    outputs = session.activations(batch)
    return sum(
        float(np.linalg.norm(plane.off(x.astype(np.float64)), axis=1).sum())
        for plane, x in zip(near, outputs, strict=True)
    )


def test_outputs_are_those_before_the_answers(bench: Bench, llama: LocalModel) -> None:
    session, batch = bench.open(PREFIX, llama), asked()
    found = session.activations(batch)
    assert found.shape == (llama.shape.layers, 4, llama.shape.hidden_size)
    weights = load_file(llama.folder / "model.safetensors")
    eps = json.loads((llama.folder / "config.json").read_text())["rms_norm_eps"]
    for row in range(4):
        start = 2 + row
        last = found[-1, row].astype(np.float64)
        normed = last / np.sqrt((last**2).mean() + eps) * weights["model.norm.weight"]
        expected = session.logits(batch.tokens[row, : start + 1].tolist())[-1]
        np.testing.assert_allclose(weights["lm_head.weight"] @ normed, expected, atol=1e-4)


@pytest.mark.parametrize("case", PULLED, ids=lambda case: case.name)
def test_gradients_are_those_of_finite_differences(
    case: Case, bench: Bench, llama: LocalModel
) -> None:
    session, batch = bench.open(case.method.on_disk(), llama), asked()
    step(session, rows(seed=1), rate=case.rate)
    near = planes(session, llama.shape.layers)
    own = {name: np.array(x) for name, x in session.adapter_tensors().items()}
    told = Distance(near)
    grads = session.pull(batch, told)
    draw = np.random.default_rng(3)
    way = {name: draw.normal(size=x.shape).astype(np.float32) for name, x in own.items()}
    expected = sum(float((way[name] * grads[name]).sum()) for name in grads)

    def moved(by: float) -> float:
        session.restore({name: x + np.float32(by) * way[name] for name, x in own.items()})
        return distance(session, batch, near)

    size = 2e-3
    assert (moved(size) - moved(-size)) / (2 * size) == pytest.approx(expected, rel=2e-2)
    if case is PREFIX:  # other methods may leave the first blocks as they are
        assert told.total == pytest.approx(moved(0.0), rel=1e-5)


@pytest.mark.parametrize("places", ["checkpointed", "streamed", "offloaded"])
def test_gradients_are_the_same_wherever_blocks_are(
    places: str, bench: Bench, llama: LocalModel
) -> None:
    found: list[NDArray[Any]] = []
    for knobs in ({}, bench.ways.places[places]):
        session = bench.open(PREFIX, llama, **knobs)
        grads = session.pull(asked(), Distance(planes(session, llama.shape.layers)))
        (grad,) = grads.values()
        found.append(grad)
    assert np.abs(found[0]).max() > 0
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_tuned_prefix_comes_nearer_and_is_gone_afterwards(
    bench: Bench, llama: LocalModel
) -> None:
    session = bench.open(PREFIX, llama)
    step(session, lesson(), rate=PREFIX.rate)
    near, batch = planes(session, llama.shape.layers), asked()
    tensors = {name: x.copy() for name, x in session.adapter_tensors().items()}
    own, base = session.logits(ROW), session.logits(ROW, adapter=None)

    with steered(session, batch, near, Steering(tuning_steps=6, tuning_rate=0.05)) as distances:
        assert len(distances) == 6
        assert distance(session, batch, near) < distances[-1] < distances[0]
        assert not np.array_equal(session.logits(ROW), own)
        np.testing.assert_array_equal(session.logits(ROW, adapter=None), base)
    for name, x in session.adapter_tensors().items():
        np.testing.assert_array_equal(x, tensors[name])
    np.testing.assert_array_equal(session.logits(ROW), own)
    before = loss_of(session, lesson())
    step(session, lesson(), rate=PREFIX.rate)
    assert loss_of(session, lesson()) < before, "it can be trained on"
