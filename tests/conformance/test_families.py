"""Methods work on every family of models: fused projections, biases, windows, caps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from models import FAMILIES, MIXTURES, make_model

from conformance.cases import CASES, Case
from conformance.probes import probe
from conformance.sessions import ROW, Bench, packed, rows, step
from conformance.test_combinations import KINDS
from edgetune.adapters import LoadedAdapter, load_adapter, save_adapter
from edgetune.errors import UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.updates import StoredTensors
from edgetune.model import LocalModel

BIASED = {
    "llama", "gpt2", "gpt_neox", "gpt_bigcode", "phi", "falcon", "bloom", "opt", "arcee", "nemotron",
    "seed_oss", "ernie4_5", "granite", "gpt_oss", "persimmon", "phimoe",
}  # fmt: skip
"""Families all of whose projections have a bias, or can be given one by the config."""

THOROUGH = ("llama", "gpt2", "gpt_neox", "gemma2", "phi3", "lfm2", "qwen3_5_text", "gemma4_text")
"""Families that meet every method; each of the others meets two."""

REFUSED: dict[str, set[str]] = {
    "gemma3n_text": {"prompt", "prefix", "mam", "llama-adapter"},
    "gemma4_text": {"prompt", "prefix", "mam", "llama-adapter"},
    "gemma4_unified_text": {"prefix", "mam"},
    "gemma4_moe": {"prefix", "mam"},
    "deepseek_v2": {"prefix", "mam"},
    "deepseek_v3": {"prefix", "mam"},
    "glm4_moe_lite": {"prefix", "mam"},
    "olmo": {"norm"},
}
"""What families have no place for."""


def kinds_of(family: str) -> Sequence[Case]:
    """Return the methods that a family meets."""
    if family in THOROUGH:
        return [case for case in KINDS if case.kind not in REFUSED.get(family, ())]
    left_out = {"lora", "full"} if family in MIXTURES else {"lora"}
    left_out |= REFUSED.get(family, set())
    others = [case for case in KINDS if case.kind not in left_out]
    return others[crc32(family.encode()) % 6 :: 6]  # by its name: another family moves none


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LocalModel]:
    made: dict[str, LocalModel] = {}

    def model(family: str) -> LocalModel:
        if family not in made:
            # of which two read others' keys; of each kind one
            layers = {"gemma3n_text": 4, "gemma4_text": 4, "nemotron_h": 3}.get(family, 2)
            folder = make_model(tmp_path_factory.mktemp(family), family, layers=layers)
            made[family] = LocalModel.open(folder)
        return made[family]

    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_methods_count_learn_save_and_merge(
    family: str, bench: Bench, models: Callable[[str], LocalModel], tmp_path: Path
) -> None:
    model = models(family)
    for case in kinds_of(family):
        session = bench.open(case, model)
        start = session.logits(ROW)
        if case.identity:
            base = session.logits(ROW, adapter=None)
            np.testing.assert_allclose(start, base, rtol=0, atol=5e-5, err_msg=case.name)
        trained = probe(bench.name, session).trained()
        assert sum(x.size for x in trained.values()) == case.parameters(model.shape), case.name
        alone, together = (step(session, x, rate=0) for x in (rows(), packed(rows())))
        if not case.settings.get("dropout"):
            np.testing.assert_allclose(alone, together, rtol=3e-4, err_msg=case.name)
        # a step of a mixture may choose other experts, and lose by it
        steps, share = (4, 30) if family in MIXTURES else (2, 10)
        first, *then = (step(session, rows(), rate=case.rate / share) for _ in range(steps))
        assert min(then) < first, case.name
        folder = tmp_path / case.name
        save_adapter(folder, case.method, model.shape, session.adapter_tensors(), base="tiny")
        loaded = load_adapter(folder, model.shape)
        other = bench.open(loaded.method, model)
        other.restore(loaded.tensors)
        adapted = session.logits(ROW)
        np.testing.assert_allclose(other.logits(ROW), adapted, rtol=0, atol=5e-5)
        if case.method.mergeable:
            _check_merge(bench, model, loaded, adapted, folder / "merged")


def test_pissa_is_saved_where_a_projection_is_narrower_than_its_rank(
    bench: Bench, tmp_path: Path
) -> None:
    folder = make_model(
        tmp_path / "base", "qwen3_5_text", layers=2, linear_num_value_heads=2
    )  # fmt: skip
    model, case = LocalModel.open(folder), next(case for case in CASES if case.name == "pissa")
    session = bench.open(case, model)
    base = session.logits(ROW, adapter=None)
    np.testing.assert_allclose(session.logits(ROW), base, rtol=0, atol=5e-5)
    step(session, rows(), rate=case.rate)
    save_adapter(tmp_path / "a", case.method, model.shape, session.adapter_tensors(), base="tiny")
    loaded = load_adapter(tmp_path / "a", model.shape)
    _check_merge(bench, model, loaded, session.logits(ROW), tmp_path / "merged")


def _check_merge(
    bench: Bench, model: LocalModel, adapter: LoadedAdapter, adapted: np.ndarray, output: Path
) -> None:
    request = ExportRequest(adapter=adapter, model=model, output=output)
    found = adapter.method.merge(model.shape, adapter.tensors, StoredTensors(model))
    if found.biased and model.shape.family not in BIASED:
        with pytest.raises(UsageError, match=r"cannot say that .* have biases"):
            export("hf", request)
        return
    export("hf", request)
    merged = bench.open(KINDS[-1], LocalModel.open(output)).logits(ROW, adapter=None)
    np.testing.assert_allclose(merged, adapted, rtol=1e-4, atol=5e-5, err_msg=adapter.method.kind)
