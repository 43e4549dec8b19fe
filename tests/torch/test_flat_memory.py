"""Memory stays flat: what a process holds does not grow with the lengths that it meets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import make_model

from edgetune.memory.costs.cpu import KERNEL, KERNELS

SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "head_dim": 24,
    "max_position_embeddings": 512,
}

SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
import numpy as np
from engines import micro_batch
from sessions import session_for
from edgetune.generation import generate
from edgetune.backend import GenerateOptions
from edgetune.model import LocalModel
from edgetune_torch.memory import anonymous_bytes

draw, seen = np.random.default_rng(0), []
model = LocalModel.open(Path(sys.argv[1]))
with session_for(model, compute_dtype="bfloat16", context=320, loss_chunk=64) as session:
    for step in range(60):
        lengths = tuple(int(n) for n in draw.integers(2, 160, 2))
        batch = micro_batch(lengths, width=320, seed=step)
        session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-3)
        session.evaluate([micro_batch((lengths[0],), width=lengths[0], seed=step)])
        prompt = [5] * lengths[1]
        list(generate(session, [prompt], GenerateOptions(max_tokens=2, end_tokens=frozenset())))
        seen.append(anonymous_bytes())
print(json.dumps(seen))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_length_leaves_anything_behind(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base", "llama", **SHAPE)
    command = [sys.executable, "-c", SCRIPT, str(folder)]

    # a user's setting that would let the cache grow
    settings = os.environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=settings)

    seen = json.loads(run.stdout)
    assert max(seen) < seen[0] + KERNELS * KERNEL
    assert seen[-1] < 1.01 * seen[20]
