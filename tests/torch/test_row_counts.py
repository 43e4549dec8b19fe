"""Every product takes its row count from the fixed set, and what fills it up changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import micro_batch
from letters import with_letters
from models import make_model
from sessions import session_for
from torch.utils._python_dispatch import TorchDispatchMode

from edgetune.backend import GenerateOptions
from edgetune.buckets import bucket
from edgetune.data.batch import MicroBatch
from edgetune.generation import generate
from edgetune.methods import METHODS, build
from edgetune.model import LocalModel

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.addmm.default,
            torch.ops.aten.addmm_.default, torch.ops.aten.addmm.out}  # fmt: skip
CHUNK = 32


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the sizes of all products of two matrices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in PRODUCTS:
            one, other = [x for x in args if isinstance(x, torch.Tensor)][-2:]
            self.found |= {*one.shape, *other.shape}
        return func(*args, **(kwargs or {}))


def _fixed(model: LocalModel) -> Iterator[int]:
    """Yield the sizes that products have whatever the rows."""
    for linear in model.shape.all_linears:
        yield from (linear.inputs, linear.outputs)
    yield from (model.shape.vocabulary, model.shape.hidden_size)


@pytest.mark.parametrize(
    "kind", [kind for kind in METHODS if kind != "dylora"]
)  # whose rank is drawn
def test_rows_of_any_length_are_multiplied_in_few_row_counts(kind: str, tmp_path: Path) -> None:
    model = LocalModel.open(with_letters(make_model(tmp_path / "base", "llama")))
    draw, sizes, method = np.random.default_rng(0), Sizes(), build(kind, {})
    options = GenerateOptions(max_tokens=3, end_tokens=frozenset())
    with session_for(model, method=method, context=128, loss_chunk=CHUNK) as session, sizes:
        for seed in range(12):
            one, other, width = (int(n) for n in draw.integers(2, 55, 3))
            batch = micro_batch((one, other), width=one + other + width // 9, seed=seed)
            session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-3)
            session.evaluate([batch])
            list(generate(session, [[3] * one, [4] * other], options))
    own = {*_fixed(model), *(n for x in method.tensors(model.shape) for n in x.shape)}
    rows = sizes.found - own
    assert rows
    assert {n for n in rows if bucket(n) != n} == set()


@pytest.mark.parametrize("kind", METHODS)
def test_what_fills_a_row_up_changes_nothing(kind: str, tmp_path: Path) -> None:
    model = LocalModel.open(with_letters(make_model(tmp_path / "base", "llama")))
    short = micro_batch((9, 6, 2), (17,), width=17)
    results = [_after_a_step(model, kind, batch) for batch in (short, short.widened(24))]
    (loss, norm, tensors), (other_loss, other_norm, other_tensors) = results
    assert (loss, norm) == (other_loss, other_norm)
    assert all(np.array_equal(tensors[name], other_tensors[name]) for name in tensors)


def _after_a_step(model: LocalModel, kind: str, batch: MicroBatch) -> tuple[float, float, Any]:
    with session_for(model, method=build(kind, {}), loss_chunk=CHUNK) as session:
        result = session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-2)
        return result.loss, result.grad_norm, dict(session.adapter_tensors())
