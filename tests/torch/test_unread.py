"""What a block that is computed again leaves out is read by nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from dispatched import Dispatched
from engines import BATCH, opened
from models import SHAPES, make_model

from edgetune.buckets import bucket
from edgetune.methods import METHODS, build
from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE

FAMILIES = (
    "llama",
    "gpt_neox",
    "cohere",
    "gemma2",
    "gemma4_text",
    "phi3",
    "nemotron_h",
    "mixtral",
    "nemotron_h_moe",
)
"""Blocks in a row and beside each other, with norms behind and without, and of one half."""


@contextmanager
def filled() -> Iterator[None]:
    """Fill memory that nothing was written to with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _same(model: LocalModel, method: Any, **options: Any) -> None:
    found = []
    for reads in (True, False):
        with filled(), opened(model, lora=method, checkpointed=99, **options) as own:
            own.method.reads_summands = own.method.reads_summands or reads
            found.append(own.gradients(BATCH))
    (loss, grads), (other_loss, other_grads) = found
    assert other_loss == loss
    assert grads.keys() == other_grads.keys()
    assert all(torch.equal(grad, other_grads[name]) for name, grad in grads.items())


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_gradients_of_all_methods_do_not_depend_on_it(
    family: str, kind: str, tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    _same(model, build(kind, {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_all_kinds_of_blocks_do_not_depend_on_it(family: str, tmp_path: Path) -> None:
    _same(LocalModel.open(make_model(tmp_path / "base", family)), build("lora", {}))


def test_gradients_of_tiles_do_not_depend_on_it(tmp_path: Path) -> None:
    _same(LocalModel.open(make_model(tmp_path / "base", "llama")), build("lora", {}), tile=8)


def test_what_ends_a_block_is_left_out() -> None:
    assert BASE.unread(SHAPES["llama"].blocks[0]) == {"down"}
    assert BASE.unread(SHAPES["gpt_neox"].blocks[0]) == {"o", "down"}
    for family in ("gemma2", "gemma4_text", "mixtral"):
        assert not any(BASE.unread(x) for x in SHAPES[family].kinds)


def test_what_is_left_out_is_no_product(tmp_path: Path) -> None:
    model, flops = LocalModel.open(make_model(tmp_path / "base", "llama")), []
    method = build("lora", {"rank": 3})
    for reads in (True, False):
        with opened(model, lora=method, checkpointed=model.shape.layers) as own:
            own.method.reads_summands = reads
            with Dispatched() as found:
                own.gradients(BATCH)
        flops.append(found.flops)

    down = model.shape.blocks[0].linear_by_role["down"]
    rows, positions = BATCH.tokens.shape
    one = 2 * rows * bucket(positions) * down.outputs * (down.inputs + 3)
    assert flops[0] - flops[1] == model.shape.layers * one
