"""Every method works with every way to hold and to compute the frozen model, or is refused."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.cases import CASES, Case
from conformance.probes import probe
from conformance.sessions import ROW, Bench, loss_of, rows, step
from edgetune.errors import UsageError
from edgetune.model import LocalModel
from edgetune.settings.spec import Checkpointing

KINDS = tuple({case.kind: case for case in reversed(CASES)}.values())
"""One case a method."""

every_method = pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)


@every_method
@pytest.mark.parametrize("bits", ["8-bit", "4-bit", "4-bit, by name"])
def test_a_quantized_base_is_adapted_and_stays(
    case: Case, bits: str, bench: Bench, wide: LocalModel
) -> None:
    quantization = bench.ways.formats[bits]
    if case.kind == "full":
        with pytest.raises(UsageError, match="--quantization none"):
            bench.open(case, wide, quantization=quantization)
        return
    session = bench.open(case, wide, quantization=quantization)
    looked = probe(bench.name, session)
    frozen, base = looked.frozen(), session.logits(ROW, adapter=None)
    if case.identity:
        np.testing.assert_allclose(session.logits(ROW), base, rtol=0, atol=2e-5)
    before = loss_of(session, rows())
    for _ in range(3):
        step(session, rows(), rate=case.rate / 5)

    assert loss_of(session, rows()) < before
    assert looked.frozen() == frozen
    np.testing.assert_array_equal(session.logits(ROW, adapter=None), base)


@every_method
@pytest.mark.parametrize("places", ["checkpointed", "streamed", "offloaded"])
def test_where_things_are_does_not_change_a_bit(
    case: Case, places: str, bench: Bench, llama: LocalModel
) -> None:
    found = []
    for held in ({"checkpointing": Checkpointing(layers=0)}, bench.ways.places[places]):
        session = bench.open(case, llama, **held)
        results = [step(session, rows()) for _ in range(2)]
        found.append((results, {n: x.tobytes() for n, x in session.adapter_tensors().items()}))

    assert found[0] == found[1]


def test_positions_that_the_model_lacks_are_refused(bench: Bench, llama: LocalModel) -> None:
    case = next(case for case in CASES if case.kind == "prompt")
    with pytest.raises(UsageError, match=r"--context \d+ would fit"):
        bench.open(case, llama, context=llama.shape.max_context)
