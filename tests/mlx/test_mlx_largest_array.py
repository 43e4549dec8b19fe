"""What an operation adds at most, which MLX is left room for, against the graphs that plans are made of."""

from __future__ import annotations

from typing import Any

import pytest
from models import SHAPES

from edgetune.choice import Choice
from edgetune.memory.batch_shape import Platform, batch_shape_of
from edgetune.memory.lazy.evaluation import Evaluation
from edgetune.memory.lazy.method import LazyMethod
from edgetune.memory.lazy.passes import LazyPasses
from edgetune.methods import METHODS, build
from edgetune.methods.planned import kinds
from edgetune.settings.spec import Checkpointing
from edgetune_mlx.largest_array import largest_array


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that each operation of each graph adds."""
    found: list[int] = []
    run, new = Evaluation._run, Evaluation._new

    def _run(self: Evaluation, operation: Any) -> None:
        found.append(0)
        run(self, operation)

    def _new(self: Evaluation, nbytes: int) -> Any:
        found[-1] += nbytes
        return new(self, nbytes)

    monkeypatch.setattr(Evaluation, "_run", _run)
    monkeypatch.setattr(Evaluation, "_new", _new)
    return found


@pytest.mark.parametrize(("dtype", "tile"), [("bfloat16", 0), ("float32", 64)])
@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "lora") for family in SHAPES), *(("llama", kind) for kind in METHODS)],
)
def test_no_operation_adds_more(
    family: str, kind: str, dtype: str, tile: int, added: list[int]
) -> None:
    shape, method = SHAPES[family], build(kind, {})
    choice = Choice(
        method=method, quantization="none", checkpointing=Checkpointing(layers=shape.layers),
        placement="resident", optimizer="adamw", compute_dtype=dtype, context=96, micro_batch=2,
        accumulation=1, loss_chunk=1, tile=tile,
    )  # fmt: skip
    rows = batch_shape_of(shape, choice, Platform(kind="mlx", multiplies_16bit=False))
    passes = LazyPasses(LazyMethod(method, shape, {}), shape, rows, "none", streamed=False)
    for each in set(kinds(method, shape, method.tensors(shape))):
        passes.of(each)
    assert 0 < max(added) <= largest_array(choice, shape)
