"""edgetune as a contender: ``peer_edgetune.py WORK PLACES`` with both as JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from peer_work import ALPHA, RANK, SEED, Result, Work, loading, measured

from edgetune.backend import Session
from edgetune.choice import Choice
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.device import read_device
from edgetune.memory import estimate
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.planning import Plan, make_plan
from edgetune.planning.capability import platform_of
from edgetune.settings.spec import Checkpointing
from edgetune.workflows.opening import open_session


def plan_for(work: Work, model: LocalModel, places: dict[str, str]) -> Plan:
    """Return the plan that does the same as the peers: everything checkpointed, NF4, 8-bit AdamW.

    Under a cap the planner chooses.
    """
    choice = Choice(
        method=Lora(rank=RANK, alpha=ALPHA),
        quantization="nf4",
        checkpointing=Checkpointing(layers=model.shape.layers),
        optimizer="adamw-8bit",
        compute_dtype=work.dtype,  # type: ignore[arg-type]
        context=work.tokens,
        micro_batch=1,
        accumulation=1,
        **{"placement": "resident", "loss_chunk": 2048, **places},  # type: ignore[arg-type]
    )
    training = {"learning_rate": work.learning_rate, "steps": work.steps, "seed": SEED}
    device = read_device(work.device)
    if work.cap:
        fixed = {
            "method": "lora", "rank": RANK, "alpha": ALPHA, "context": work.tokens,
            "micro_batch": 1, "accumulation": 1,
        }  # fmt: skip
        return make_plan(
            device, work.model, model.shape, fixed=fixed, training=training, memory=work.cap
        )
    plan = make_plan(device, work.model, model.shape, fixed={}, training=training)
    return replace(plan, choice=choice, memory=estimate(model.shape, choice, platform_of(device)))


def train(session: Session, work: Work, result: Result) -> None:
    """Take one step a row."""
    for row in work.rows():
        targets = np.append(row[1:], IGNORED).astype(np.int32)
        batch = MicroBatch(tokens=row[None], targets=targets[None], documents=((work.tokens,),))
        begun = time.perf_counter()
        step = session.step([batch], loss_tokens=work.tokens - 1, learning_rate=work.learning_rate)
        result.seconds.append(time.perf_counter() - begun)
        result.losses.append(step.loss)


def main() -> None:
    """Train and report."""
    work, places = Work(**json.loads(sys.argv[1])), json.loads(sys.argv[2])
    result = Result()
    with measured(result):
        with loading(result):
            model = LocalModel.open(Path(work.model))
            session = open_session(plan_for(work, model, places), model)
        train(session, work, result)
        session.close()
    result.print()


if __name__ == "__main__":
    main()
