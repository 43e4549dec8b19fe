"""What an objective over answers changes in a plan."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from planning import card, plan_of, processor

from edgetune.device.profiles import profile_device
from edgetune.errors import UsageError
from edgetune.files import sha256_json
from edgetune.objectives import OBJECTIVES, objective_class
from edgetune.planning import DataFacts, plan_from_json
from edgetune.planning.plan import mean_document
from edgetune.runs.facts import plan_hash
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


@pytest.mark.parametrize(
    ("model", "fixed", "because"),
    [
        (MODEL, {}, None),
        (MODEL, {"attention_group": 64}, "--attention-group cuts it"),
        ("phi-3.5-mini", {}, "by the length of what follows"),
        ("lfm2-1.2b", {}, "blocks without attention"),
        ("qwen3.5-0.8b", {}, "blocks without attention"),
    ],
)
def test_prompts_are_shared_where_that_is_right(
    model: str, fixed: dict[str, int], because: str | None
) -> None:
    plan = plan_of(model, card(), training={"objective": "dpo"}, **fixed)
    assert plan.training.share_prompts is (because is None)
    said = [reason for reason in plan.reasons if "answer" in reason and "prompt" in reason]
    assert len(said) == 1
    if because is None:
        assert "both answers of a pair share" in said[0]
        return
    assert because in said[0]
    with pytest.raises(UsageError, match="--share-prompts cannot be had"):
        plan_of(model, card(), training={"objective": "dpo", "share_prompts": True}, **fixed)


def test_sharing_prompts_is_for_pairs_and_can_be_left_out() -> None:
    for name in ("sft", "kto"):
        assert plan_of(MODEL, card(), training={"objective": name}).training.share_prompts is None
        with pytest.raises(UsageError, match="learn from pairs"):
            plan_of(MODEL, card(), training={"objective": name, "share_prompts": True})
    asked = {"objective": "dpo", "share_prompts": False}
    assert plan_of(MODEL, card(), training=asked).training.share_prompts is False


OLDEST = {
    "choice": {
        "accumulation", "alpha", "alpha_pattern", "attention_group", "checkpointing", "compute_dtype",
        "context", "dropout", "embedding", "head", "layers", "lora_initial", "lora_plus",
        "loss_chunk", "method", "micro_batch", "optimizer", "placement", "quantization", "rank",
        "rank_pattern", "rslora", "targets", "trainable_parameters",
    },
    "training": {
        "beta", "epochs", "eval_every", "fields", "label_names", "learning_rate", "long_rows",
        "loss_on", "margin", "max_grad_norm", "objective", "packing", "patience", "seed", "steps",
        "validation", "validation_data", "warmup", "weight_decay",
    },
}  # fmt: skip
"""What is hashed of a plan with LoRA that was made when runs could first be resumed.

A knob that is added belongs to LATER or LATER_CHOICES, else no older run can be resumed.
"""


def test_runs_that_were_planned_with_fewer_knobs_go_on_as_they_began() -> None:
    plan = plan_of(MODEL, card(), training={"objective": "dpo", "share_prompts": False})
    plain = plan.to_json()
    oldest = plain | {
        part: {name: value for name, value in plain[part].items() if name in names}
        for part, names in OLDEST.items()
    }
    before = plan_from_json(oldest, plan.shape)
    assert not before.training.share_prompts
    assert plan.choice.tile == before.choice.tile == 0
    hashed = asdict(before.training)
    hashed = {part: oldest[part] if part == "choice" else {name: hashed[name] for name in names}
              for part, names in OLDEST.items()}  # fmt: skip
    assert plan_hash(before) == sha256_json(hashed)
