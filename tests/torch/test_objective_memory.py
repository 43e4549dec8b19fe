"""A step of a preference objective needs little more memory than one of plain training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engines import Opened, opened
from models import make_model
from preferences import paired_examples, pairs
from support.held_torch import Counted

from edgetune.data import Batches
from edgetune.data.answers import Scoring
from edgetune.data.batch import MicroBatch
from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE
from edgetune.objectives import objective_of
from edgetune.settings.spec import Training

MORE = 1.15
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 4096,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip


@pytest.mark.parametrize("checkpointed", [0, 4])
def test_a_step_on_preferences_takes_little_more_than_plain_training(
    checkpointed: int, tmp_path: Path
) -> None:
    batch = pairs(16, packed=4, width=32)
    model = LocalModel.open(make_model(tmp_path, "llama", **SIZES))
    with opened(model, checkpointed=checkpointed, chunk=64) as place:
        plain, *others = (_peak(place, batch, name) for name in ("sft", "dpo", "kto"))
    assert max(others) <= MORE * plain


def test_answers_that_share_their_prompt_take_no_more_than_plain_training(tmp_path: Path) -> None:
    examples = paired_examples(16).sharing_prompts()
    (batch, *_) = Batches(
        examples, context=128, micro_batch=4, packing=True, seed=0
    ).step(0).micro_batches  # fmt: skip
    assert batch.shared
    alone = replace(batch, documents=tuple((sum(row),) for row in batch.documents), shared=())
    model = LocalModel.open(make_model(tmp_path, "llama", **SIZES))
    with opened(model, checkpointed=0, chunk=64) as place:
        plain = _peak(place, replace(alone, answers=()), "sft")
        assert _peak(place, batch, "dpo") <= MORE * plain


def _peak(place: Opened, batch: MicroBatch, objective: str) -> int:
    """Return the peak of live bytes in the passes of a step, of all after a first one."""
    training = Training(learning_rate=1e-4, objective=objective)  # type: ignore[arg-type]
    found = objective_of(training)
    engine, still, peak = place.engine, place.method.drawing(None), 0
    for _ in range(2):
        live = Counted()
        with live:
            scoring = found and Scoring(found, lambda batch: engine.losses(batch, BASE))
            if scoring and scoring.objective.needs_mismatched:
                others = tuple(("mismatched",) * len(row) for row in batch.documents)
                scoring.begin([replace(batch, answers=others)], lambda b: engine.losses(b, still))
            weigh = scoring.weigh(batch) if scoring else None
            engine.gradients(batch, place.method, scale=1.0, weigh=weigh)
        peak = live.peak
    return peak
