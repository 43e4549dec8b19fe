"""A checkpoint is written within what its plan counts: from where it lies, but what is made for it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from engines import BATCH
from models import make_model
from recorded import facts_of
from sessions import plan_for

from edgetune.device import read_device
from edgetune.events import RunState
from edgetune.memory.model import MemoryModel
from edgetune.methods.base import Method
from edgetune.methods.full import Full
from edgetune.methods.lora import Lora
from edgetune.methods.prefix import Prefix
from edgetune.model import LocalModel
from edgetune.planning.capability import platform_of
from edgetune.runs.checkpoint import save_checkpoint
from edgetune.settings.spec import OptimizerName
from edgetune_torch.opening import open_session

LARGE = {
    "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 4000,
}  # fmt: skip
METHODS: dict[str, tuple[Method, OptimizerName]] = {
    "lora": (Lora(rank=64), "adamw"),
    "pissa": (Lora(rank=64, lora_initial="pissa", targets=("down_proj",)), "adamw-8bit"),
    "prefix": (Prefix(reparameterize=True), "adamw"),
    "full": (Full(), "adamw-8bit"),
}
BESIDE = 1 << 19
"""Bytes of names, headers and buffers of files."""


@pytest.mark.parametrize(("method", "optimizer"), METHODS.values(), ids=METHODS)
def test_a_checkpoint_is_written_within_its_plan(
    method: Method, optimizer: OptimizerName, tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "llama", **LARGE))
    plan = plan_for(model, method=method, optimizer=optimizer)
    counted = MemoryModel(model.shape, method, platform_of(read_device("cpu")))
    session = open_session(plan.spec, model)
    try:
        session.step([BATCH], loss_tokens=BATCH.loss_tokens, learning_rate=1e-3)
        tracemalloc.start()
        save_checkpoint(tmp_path, session, plan, RunState(step=1), facts_of(plan))
        _, held = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        session.close()

    assert 0 <= held < counted.saved_apart + BESIDE
