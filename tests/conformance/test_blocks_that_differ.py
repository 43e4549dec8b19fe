"""A model whose blocks differ in their sizes computes, learns and is counted as others are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mixed_models import make_mixed

from conformance.cases import Case
from conformance.probes import probe
from conformance.sessions import ROW, Bench, packed, rows, step
from conformance.test_combinations import KINDS
from edgetune.adapters import load_adapter, save_adapter
from edgetune.backend import GenerateOptions
from edgetune.errors import UsageError
from edgetune.generation import generate
from edgetune.methods.lora import Lora
from edgetune.methods.mam import Mam
from edgetune.methods.prefix import Prefix
from edgetune.model import LocalModel
from edgetune.settings.spec import Checkpointing

Models = tuple[LocalModel, LocalModel]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_mixed(tmp_path_factory.mktemp("mixed"))


def test_the_shape_counts_every_block_as_it_is(models: Models) -> None:
    differing, equal = (model.shape for model in models)
    stored = sum(np.prod(tensor.shape) for tensor in models[0].tensors.values())

    assert differing.parameters == stored
    assert (differing.alike, equal.alike) == ((0, 1), (0, 0))
    lost = 2 * 8 * 32 + 3 * 24 * 32  # a key and a value head, half of an MLP
    assert equal.parameters - differing.parameters == lost
    assert equal.linear_parameters - differing.linear_parameters == lost


def test_it_computes_what_its_wider_twin_does(bench: Bench, models: Models) -> None:
    lora = Lora(rank=3, targets=("q_proj", "o_proj"))
    differing, equal = (bench.open(lora, model) for model in models)

    np.testing.assert_allclose(differing.logits(ROW), equal.logits(ROW), rtol=0, atol=2e-5)
    for batch in (rows(), packed(rows())):
        found = [step(session, batch) for session in (differing, equal)]
        np.testing.assert_allclose(*found, rtol=1e-4)


def test_what_is_cached_of_each_block_has_its_size(bench: Bench, models: Models) -> None:
    differing, equal = (bench.open(Lora(rank=3), model) for model in models)
    options = GenerateOptions(max_tokens=6, end_tokens=frozenset())
    prompts = [ROW[:5], ROW[2:9]]

    found = list(generate(differing, prompts, options))

    assert len(found) == 12
    assert found == list(generate(equal, prompts, options))


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
def test_every_method_adapts_it_wherever_its_blocks_are(
    case: Case, bench: Bench, models: Models, tmp_path: Path
) -> None:
    model, found = models[0], []
    if isinstance(case.method, Prefix | Mam):  # of which PEFT has one size for all layers
        with pytest.raises(UsageError, match="keys of different sizes"):
            bench.open(case, model)
        return
    for held in ({"checkpointing": Checkpointing(layers=0)}, bench.ways.places["streamed"]):
        session = bench.open(case, model, **held)
        results = [step(session, rows(), rate=case.rate / 10) for _ in range(2)]
        found.append((results, {n: x.tobytes() for n, x in session.adapter_tensors().items()}))
    assert found[0] == found[1]
    assert found[0][0][1] < found[0][0][0]
    trained = probe(bench.name, session).trained()
    expected = sum(x.size for x in case.method.tensors(model.shape) if x.trained)
    assert sum(x.size for x in trained.values()) == expected
    save_adapter(tmp_path, case.method, model.shape, session.adapter_tensors(), base="mixed")
    loaded = load_adapter(tmp_path, model.shape)
    other = bench.open(loaded.method, model)
    other.restore(loaded.tensors)
    np.testing.assert_allclose(other.logits(ROW), session.logits(ROW), rtol=0, atol=5e-5)
