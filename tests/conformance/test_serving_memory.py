"""Adapters beside each other hold the bytes that are counted, and are swapped bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from conformance.cases import CASES, Case
from conformance.sessions import ROW, Bench, rows, step
from edgetune.backend import GenerateOptions, Session
from edgetune.generation import generate
from edgetune.memory.serving import adapter_bytes
from edgetune.model import LocalModel

every_method = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

ROUNDING = 64
"""Bytes that an allocator may add to a tensor."""


@contextmanager
def _held(backend: str, use: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """Yield what tells the bytes of tensors that are there now and were not before.

    ``use`` meets all that is there before.
    """
    gc.collect()
    if backend == "mlx":
        import mlx.core as mx

        use()
        before = mx.get_active_memory()
        yield lambda: mx.get_active_memory() - before
        return
    from edgetune_torch.dry_run import LiveBytes

    with LiveBytes() as live:
        use()
        gc.collect()
        before = live.live
        yield lambda: live.live - before


def _answer(session: Session, adapter: str | None) -> list[int]:
    options = GenerateOptions(max_tokens=2)
    return [token for _, token in generate(session, [ROW[:4]], options, adapters=[adapter])]


@every_method
def test_an_adapter_holds_what_is_counted(case: Case, bench: Bench, llama: LocalModel) -> None:
    method = case.method.on_disk()
    session = bench.open(method, llama)
    tensors, planned = session.adapter_tensors(), adapter_bytes(llama.shape, method)
    session.attach("first", method, tensors)
    with _held(bench.name, lambda: _answer(session, "first")) as held:
        for name in ("second", "third"):
            session.attach(name, method, tensors)
            _answer(session, name)
        gc.collect()
        least = sum(x.nbytes for x in tensors.values())
        assert 2 * least <= held() <= 2 * (planned + ROUNDING * (2 * len(tensors) + 8))
        session.detach("second")
        session.detach("third")
        gc.collect()
        assert held() <= 0


@every_method
def test_an_adapter_that_was_swapped_comes_back_bit_for_bit(
    case: Case, bench: Bench, llama: LocalModel
) -> None:
    method = case.method.on_disk()
    session = bench.open(method, llama)
    step(session, rows(seed=1), rate=case.rate)
    one = {name: x.copy() for name, x in session.adapter_tensors().items()}
    other = {name: x + np.float32(0.01) for name, x in one.items()}
    base, own = session.logits(ROW, adapter=None), session.logits(ROW)

    session.restore(other)
    swapped = session.logits(ROW)
    assert not np.array_equal(swapped, own)
    session.restore(one)
    np.testing.assert_array_equal(session.logits(ROW), own)
    session.attach("other", method, other)
    session.detach("other")
    np.testing.assert_array_equal(session.logits(ROW), own)
    np.testing.assert_array_equal(session.logits(ROW, adapter=None), base)
