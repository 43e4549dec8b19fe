"""LoRA on the experts of a mixture: one pair of tensors for all of them, in every block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import make_model

from conformance import test_methods as every
from conformance import test_switching as switching
from conformance.cases import Case
from conformance.sessions import ROW, Bench, packed, rows, step
from edgetune.errors import UsageError
from edgetune.methods import METHODS, build
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.shape import ModelShape

RANK = 2


def _experts(shape: ModelShape, *, a: bool = True) -> int:
    """Return r (inputs + outputs) for each projection of each expert, gate and up being one.

    Nemotron 3's experts have no gate.
    """
    read = 1 if shape.family == "nemotron_h" else 2
    rules = [block.experts for block in shape.blocks if block.experts is not None]
    sizes = [(x.number, x.hidden, x.size) for x in rules]
    ends = [e * (read * f + d) for e, d, f in sizes]
    starts = [e * (d + f) for e, d, f in sizes] if a else []
    return RANK * sum(ends + starts)


LORA = Case(
    name="experts", kind="lora", settings={"rank": RANK, "targets": ("experts",)},
    parameters=_experts,
)  # fmt: skip
FIXED = Case(
    name="experts-fa", kind="lora-fa", settings={"rank": RANK, "targets": ("experts",)},
    parameters=lambda s: _experts(s, a=False), rate=1e-1,
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LocalModel]:
    made: dict[str, LocalModel] = {}

    def model(family: str) -> LocalModel:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = LocalModel.open(make_model(folder, family, layers=2))
        return made[family]

    return model


@pytest.mark.parametrize(
    ("family", "case"),
    [("qwen2_moe", LORA), ("gpt_oss", LORA), ("gemma4_moe", FIXED), ("nemotron_h_moe", LORA)],
    ids=lambda x: getattr(x, "name", x),
)
def test_experts_count_learn_and_merge(
    family: str, case: Case, bench: Bench, models: Callable[[str], LocalModel], tmp_path: Path
) -> None:
    model = models(family)
    every.test_counts_equal_the_formula(case, bench, model)
    every.test_the_start_is_the_base(case, bench, model)
    every.test_gradients_equal_finite_differences(case, bench, model)
    if family != "gpt_oss":  # whose gates are clamped at 0.5 here, so that its experts say little
        every.test_eight_rows_are_learned_and_the_base_stays(case, bench, model)
    every.test_the_merged_model_computes_the_same(case, bench, model, tmp_path / "merged")


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "nemotron_h_moe"])
def test_steps_are_the_same_whatever_the_parts(
    family: str, bench: Bench, models: Callable[[str], LocalModel], tmp_path: Path
) -> None:
    model = models(family)
    every.test_a_saved_adapter_computes_the_same(LORA, bench, model, tmp_path)
    every.test_a_resumed_session_goes_on_bit_for_bit(LORA, bench, model)
    every.test_parts_of_a_batch_and_packed_rows_equal_the_whole(LORA, bench, model)
    switching.test_rows_of_a_batch_may_have_different_adapters(LORA, bench, model)


def test_streamed_experts_learn_what_resident_ones_do(
    bench: Bench, models: Callable[[str], LocalModel]
) -> None:
    found = []
    for held in ({}, bench.ways.places["streamed"], bench.ways.places["checkpointed"]):
        session = bench.open(LORA, models("qwen2_moe"), **held)
        found.append([step(session, batch) for batch in (rows(), packed(rows()), rows())])
    assert found[0] == found[1] == found[2]


def test_updates_of_quantized_experts_learn(bench: Bench, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64, "intermediate_size": 64}
    wide = LocalModel.open(make_model(tmp_path, "qwen3_moe", head_dim=16, layers=2, **sizes))
    session = bench.open(LORA, wide, quantization=bench.ways.formats["8-bit"])
    base = session.logits(ROW)
    first = step(session, rows())[0]
    assert [step(session, rows())[0] for _ in range(3)][-1] < first
    np.testing.assert_array_equal(session.logits(ROW, adapter=None), base)


def test_what_has_no_place_at_experts_is_refused(models: Callable[[str], LocalModel]) -> None:
    shape = models("qwen2_moe").shape

    for kind in ("dora", "dylora", "vera", "bitfit"):
        with pytest.raises(UsageError, match="stay frozen but with --method lora or lora-fa"):
            build(kind, {"targets": ("experts",)}).tensors(shape)
    for settings, words in (({"dropout": 0.1}, "--dropout"), ({"lora_initial": "pissa"}, "pissa")):
        method = Lora(targets=("experts",), **settings)
        (reason,) = method.refusals(shape, context=8, quantization="none")
        assert words in reason
    with pytest.raises(UsageError, match="--targets experts adapts them"):
        Lora(targets=("expert",)).tensors(shape)


def test_experts_are_adapted_where_a_pattern_has_the_word(
    models: Callable[[str], LocalModel],
) -> None:
    shape = models("qwen2_moe").shape
    for targets in ("all-linear", "mlp", "down_proj", "*.mlp.*"):
        assert not Lora(targets=(targets,)).adapts_experts(shape), targets
    for kind in METHODS:
        assert not build(kind, {}).adapts_experts(shape), kind
    names = [target.module for target in Lora(targets=("*.0.*experts.down*",)).select(shape)]
    assert names == ["model.layers.0.mlp.experts.down_proj"]
