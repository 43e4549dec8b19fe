"""MLX: our peak memory and time of a step against mlx-lm's trainer, on the same work.

    python tools/bench/mlx_peers.py [--output FILE]

Each contender runs in a process of its own: LoRA of rank 8 on all projections of a random Llama,
every token under loss, float32. ``edgetune`` checkpoints every block, as mlx-lm does with
``--grad-checkpoint``; ``edgetune-planned`` leaves that to the planner, which may use as much memory as
mlx-lm has just taken. One JSON line a shape, with the ratios to mlx-lm. Where others use the machine
as well, ``busy_seconds`` is what to compare.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

STEPS, RANK, BLOCKS = 5, 8, 4
KEYS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A model of four blocks and the rows of a step."""

    vocabulary: int
    width: int
    rows: int
    context: int

    def write(self, folder: Path) -> None:
        """Write the model with random weights."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=3 * self.width,
            num_hidden_layers=BLOCKS, num_attention_heads=self.width // 16,
            num_key_value_heads=self.width // 32, max_position_embeddings=512, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)

    def tokens(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Return the rows of all steps (rows, context + 1)."""
        size = (self.rows * STEPS, self.context + 1)
        return np.random.default_rng(0).integers(3, 30_000, size).astype(np.int32)


WORKS = (Work(32_000, 64, 2, 64), Work(128_256, 64, 2, 64), Work(32_000, 512, 1, 256))


def ours(folder: Path, work: Work, room: int) -> dict[str, Any]:
    """Train with edgetune, with every block checkpointed or in ``room`` bytes more than that takes."""
    import mlx.core as mx

    from edgetune.backend import load_backend
    from edgetune.data.batch import MicroBatch
    from edgetune.device import read_device
    from edgetune.model import LocalModel
    from edgetune.planning import make_plan
    from edgetune.settings.spec import Checkpointing

    model = LocalModel.open(folder)
    fixed = {
        "rank": RANK, "quantization": "none", "placement": "resident",
        "compute_dtype": "float32", "context": work.context, "micro_batch": work.rows,
        "accumulation": 1,
    }  # fmt: skip
    plan_for = partial(make_plan, read_device("mlx"), str(folder), model.shape, training={})
    plan = plan_for(fixed={**fixed, "checkpointing": Checkpointing(layers=BLOCKS)})
    if room:
        plan = plan_for(fixed=fixed, memory=plan.memory.peak_bytes + room)
    session = load_backend("mlx").open(plan.spec, model)
    mx.reset_peak_memory()
    seconds, busy = [], []
    for part in np.split(work.tokens(), STEPS):
        batch = MicroBatch(
            tokens=part[:, :-1], targets=part[:, 1:], documents=((work.context,),) * work.rows
        )
        begun, worked = time.perf_counter(), time.process_time()
        session.step((batch,), loss_tokens=work.rows * work.context, learning_rate=1e-3)
        seconds.append(time.perf_counter() - begun)
        busy.append(time.process_time() - worked)
    found = figures(session.memory().peak_bytes, seconds, busy)
    return {**found, "checkpointed": plan.choice.checkpointing.layers}


def mlx_lm(folder: Path, work: Work) -> dict[str, Any]:
    """Train with mlx-lm's trainer and ``--grad-checkpoint``."""
    import mlx.core as mx
    from mlx import optimizers
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.datasets import CacheDataset
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model.freeze()
    settings = {"rank": RANK, "scale": 2.0, "dropout": 0.0, "keys": KEYS}
    linear_to_lora_layers(model, BLOCKS, settings)
    seconds: list[float] = []
    busy: list[float] = []
    worked = time.process_time()

    class Watch(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
            nonlocal worked
            seconds.append(1 / train_info["iterations_per_second"])
            now = time.process_time()
            busy.append(now - worked)
            worked = now

    class Rows:
        def __init__(self) -> None:
            self.rows = work.tokens()

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> Any:
            return self.rows[index].tolist(), 0

        def process(self, row: Any) -> Any:
            return row

    arguments = TrainingArgs(
        batch_size=work.rows, iters=STEPS, steps_per_report=1, steps_per_eval=10**9,
        steps_per_save=10**9, max_seq_length=work.context + 1, grad_checkpoint=True,
        adapter_file=str(folder / "adapters.safetensors"),
    )  # fmt: skip
    mx.reset_peak_memory()
    optimizer = optimizers.AdamW(learning_rate=1e-3, bias_correction=True)
    train(model, optimizer, CacheDataset(Rows()), args=arguments, training_callback=Watch())
    return figures(mx.get_peak_memory(), seconds, busy)


def figures(peak: int, seconds: list[float], busy: list[float]) -> dict[str, Any]:
    """Return bytes, seconds of a step, and those of them in which processors worked for it."""
    return {
        "peak_bytes": peak,
        "seconds": statistics.median(seconds),
        "busy_seconds": statistics.median(busy),
    }


CONTENDERS = ("mlx-lm", "edgetune", "edgetune-planned")


def contend(name: str, folder: Path, work: Work, room: int) -> dict[str, Any]:
    """Do the work as one contender."""
    if name == "mlx-lm":
        return mlx_lm(folder, work)
    return ours(folder, work, room if name == "edgetune-planned" else 0)


def measure(name: str, folder: Path, work: Work, room: int) -> dict[str, Any]:
    """Run one contender in a process of its own."""
    command = [sys.executable, __file__, "--contender", name, "--model", str(folder)]
    command += ["--work", json.dumps(asdict(work)), "--room", str(room)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def compare(work: Work) -> dict[str, Any]:
    """Run all contenders one after the other; the last may use what mlx-lm took beyond ours."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work.write(Path(folder))
        for name in CONTENDERS:
            peaks = [found.get(each, {}).get("peak_bytes", 0) for each in CONTENDERS[:2]]
            found[name] = measure(name, Path(folder), work, max(0, peaks[0] - peaks[1]))
    theirs = found["mlx-lm"]
    ratio = {
        name: {key: round(found[name][key] / theirs[key], 3)
               for key in ("peak_bytes", "seconds", "busy_seconds")}
        for name in CONTENDERS[1:]
    }  # fmt: skip
    return {**asdict(work), "steps": STEPS, **found, "ratio": ratio}


def main() -> None:
    """Compare, or be one of the contenders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contender", choices=CONTENDERS)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=json.loads)
    parser.add_argument("--room", type=int, default=0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(contend(given.contender, given.model, Work(**given.work), given.room)))
        return
    facts = {
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm")},
    }
    lines = []
    for work in WORKS:
        lines.append(json.dumps({**facts, **compare(work)}))
        print(lines[-1], flush=True)
    if given.output:
        given.output.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
