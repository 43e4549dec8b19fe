"""Rows packed into one are learned as if each stood alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import SMALL, make_model
from sessions import session_for

from edgetune.data import Batches, Examples, MicroBatch
from edgetune.data.encode import Learned
from edgetune.data.examples import RowLocations
from edgetune.data.token_store import token_store_of
from edgetune.model import LocalModel

CONTEXT = 32


def examples(count: int = 12) -> Examples:
    """Random rows of 2 to 20 tokens, of which the second half is learned."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(2, 20, count).tolist()
    rows = [
        Learned(draw.integers(3, SMALL["vocab_size"], n, np.int32), [(n // 2, n)]) for n in lengths
    ]
    columns = token_store_of(rows, range(count))
    return Examples.of(columns, RowLocations(("rows:",), np.array([0, count]), columns.lines))


def epoch(packing: bool) -> list[MicroBatch]:
    """All micro-batches of an epoch."""
    batches = Batches(examples(), context=CONTEXT, micro_batch=2, packing=packing, seed=0)
    steps = map(batches.step, range(batches.steps_per_epoch))
    return [part for step in steps for part in step.micro_batches]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_packed_loss_and_gradients_equal_unpacked(family: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path, family))
    losses, adapters = [], []
    for packing in (True, False):
        parts = epoch(packing)
        assert (max(len(row) for part in parts for row in part.documents) > 1) is packing
        with session_for(model) as session:
            found = session.evaluate(parts)
            losses.append((found.loss_sum, found.loss_tokens))
            session.step(parts, loss_tokens=found.loss_tokens, learning_rate=1e-2)
            adapters.append(session.adapter_tensors())
    packed, apart = losses
    assert packed[0] == pytest.approx(apart[0], rel=1e-5)
    assert packed[1] == apart[1]
    for name, tensor in adapters[0].items():
        np.testing.assert_allclose(tensor, adapters[1][name], atol=1e-5, err_msg=name)
