"""The error of the planned peak on a card: ``cuda_predict.py MODEL``, one JSON line a choice."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from itertools import product
from pathlib import Path

import numpy as np
import torch

from edgetune.data.batch import MicroBatch
from edgetune.device import read_device
from edgetune.errors import EdgetuneError
from edgetune.model import LocalModel
from edgetune.planning import make_plan
from edgetune.settings.spec import Checkpointing
from edgetune.workflows.opening import open_session

CONTEXTS = (256, 1024, 4096)
CHOICES = list(product(("none", "int8", "nf4"), ("resident", "host"), (0, 1)))


def measure(model: LocalModel, context: int, choice: tuple[str, str, int]) -> dict[str, object]:
    """Return planned and measured bytes of two steps."""
    quantization, placement, checkpointed = choice
    layers = Checkpointing(layers=checkpointed * model.shape.layers)
    fixed = {
        "method": "lora", "quantization": quantization, "placement": placement,
        "checkpointing": layers, "context": context, "micro_batch": 1, "accumulation": 1,
    }  # fmt: skip
    plan = make_plan(
        read_device("cuda"), str(model.folder), model.shape, fixed=fixed,
        training={"learning_rate": 1e-4, "steps": 2},
    )  # fmt: skip
    draw = np.random.default_rng(0).integers(3, model.shape.vocabulary, (1, context + 1))
    tokens = draw.astype(np.int32)
    batch = MicroBatch(tokens=tokens[:, :-1], targets=tokens[:, 1:].copy(), documents=((context,),))
    with closing(open_session(plan, model)) as session:
        for _ in range(2):
            session.step([batch], loss_tokens=context, learning_rate=1e-4)
        measured = session.memory().peak_bytes + plan.memory.parts.runtime
    planned = plan.memory.peak_bytes
    return {"planned": planned, "measured": measured, "error": planned / measured - 1}


def main() -> None:
    """Measure every choice that can be planned."""
    model = LocalModel.open(Path(sys.argv[1]))
    for context, choice in product(CONTEXTS, CHOICES):
        torch.cuda.empty_cache()
        try:
            found = measure(model, context, choice)
        except EdgetuneError as error:
            found = {"refused": str(error)}
        print(json.dumps({"context": context, "choice": choice, **found}), flush=True)


if __name__ == "__main__":
    main()
