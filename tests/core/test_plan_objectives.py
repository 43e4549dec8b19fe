"""What an objective over answers changes in a plan."""

from __future__ import annotations

import pytest
from planning import card, plan_of, processor

from edgetune.device.profiles import profile_device
from edgetune.errors import UsageError
from edgetune.objectives import OBJECTIVES, objective_class
from edgetune.planning import DataFacts, plan_from_json
from edgetune.planning.plan import mean_document
from edgetune.settings.spec import Checkpointing

MODEL = "llama-3.2-1b"
FACTS = DataFacts(path="pairs.jsonl", rows=500, longest=300, tokens=100_000)
SHAPE = {
    "context": 512, "micro_batch": 2, "accumulation": 4, "loss_chunk": 256,
    "quantization": "none", "checkpointing": Checkpointing(layers=16),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_settings_are_decided_said_and_written(name: str) -> None:
    plan = plan_of(MODEL, card(), FACTS, training={"objective": name})
    plain = plan_of(MODEL, card(), FACTS)
    assert plan.training.beta == objective_class(name)().beta  # type: ignore[attr-defined]
    assert f"beta {plan.training.beta:g}: usual for {name}" in plan.reasons
    assert plan.training.learning_rate == pytest.approx(plain.training.learning_rate / 10, rel=0.1)
    assert plan_from_json(plan.to_json(), plan.shape).training == plan.training
    assert mean_document(FACTS, plan.training) == 200 / objective_class(name).documents
    assert mean_document(FACTS, plain.training) == 200


def test_a_reference_takes_time_and_next_to_no_memory() -> None:
    plain, simpo, dpo, kto = (
        plan_of(MODEL, processor(), training={"objective": name}, **SHAPE)
        for name in ("sft", "simpo", "dpo", "kto")
    )
    times = [plan.time.seconds_per_step for plan in (plain, simpo, dpo, kto)]
    assert times == sorted(set(times))
    assert times[2] < 1.5 * times[0]
    assert times[3] - times[1] == pytest.approx(3 * (times[2] - times[1]))
    for plan in (dpo, kto):
        assert plain.memory.peak_bytes <= plan.memory.peak_bytes <= 1.15 * plain.memory.peak_bytes


def test_blocks_keep_nothing_where_weights_are_needed_half_way() -> None:
    mac, training = profile_device("m2-24gb"), {"objective": "dpo"}
    plan = plan_of(MODEL, mac, training=training)
    assert plan.choice.checkpointing.layers == plan.shape.layers
    assert plan_of(MODEL, mac).choice.checkpointing.layers < plan.shape.layers
    with pytest.raises(UsageError, match="needs --checkpointing all"):
        plan_of(MODEL, mac, training=training, checkpointing=Checkpointing(layers=2))


def test_answers_are_not_compared_with_themselves() -> None:
    alone = {"micro_batch": 1, "accumulation": 1}
    with pytest.raises(UsageError, match="compares the rows of a step with each other"):
        plan_of(MODEL, card(), training={"objective": "kto"}, **alone)
    assert plan_of(MODEL, card(), training={"objective": "dpo"}, **alone)


def test_a_setting_of_another_objective_is_refused() -> None:
    with pytest.raises(UsageError, match="--objective dpo has no --margin"):
        plan_of(MODEL, card(), training={"objective": "dpo", "margin": 1.0})
