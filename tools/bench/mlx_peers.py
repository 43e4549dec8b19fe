"""MLX: our peak memory and time of a step against mlx-lm's trainer, on the same work.

    python tools/bench/mlx_peers.py [--output FILE]

Each contender runs in a process of its own: LoRA of rank 8 on all projections of a random Llama,
every token under loss, every block checkpointed, float32, for vocabularies of 32,000 and 128,256.
One JSON line a vocabulary, with the ratios ours / mlx-lm. Where others use the machine as well,
`busy_seconds` is what to compare.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARIES = (32_000, 128_256)
ROWS, CONTEXT, STEPS, RANK = 2, 64, 4, 8
KEYS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip


def make_model(folder: Path, vocabulary: int) -> None:
    """Write a random model of 4 blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=192, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def rows() -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return token rows, one more long than the context."""
    draw = np.random.default_rng(0)
    return draw.integers(3, 30_000, (ROWS * STEPS, CONTEXT + 1)).astype(np.int32)


def ours(folder: Path) -> dict[str, Any]:
    """Train with edgetune."""
    import mlx.core as mx

    from edgetune.backend import load_backend
    from edgetune.data.batch import MicroBatch
    from edgetune.device import read_device
    from edgetune.model import LocalModel
    from edgetune.planning import make_plan
    from edgetune.settings.spec import Checkpointing

    model = LocalModel.open(folder)
    fixed = {
        "rank": RANK, "quantization": "none", "checkpointing": Checkpointing(layers=4),
        "placement": "resident", "compute_dtype": "float32", "context": CONTEXT,
        "micro_batch": ROWS, "accumulation": 1,
    }  # fmt: skip
    plan = make_plan(read_device("mlx"), str(folder), model.shape, fixed=fixed, training={})
    session = load_backend("mlx").open(plan.spec, model)
    mx.reset_peak_memory()
    seconds, busy = [], []
    for part in np.split(rows(), STEPS):
        batch = MicroBatch(tokens=part[:, :-1], targets=part[:, 1:], documents=((CONTEXT,),) * ROWS)
        begun, worked = time.perf_counter(), time.process_time()
        session.step((batch,), loss_tokens=ROWS * CONTEXT, learning_rate=1e-3)
        seconds.append(time.perf_counter() - begun)
        busy.append(time.process_time() - worked)
    return figures(session.memory().peak_bytes, seconds, busy)


def mlx_lm(folder: Path) -> dict[str, Any]:
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
    linear_to_lora_layers(model, 4, settings)
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
            self.rows = rows()

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> Any:
            return self.rows[index].tolist(), 0

        def process(self, row: Any) -> Any:
            return row

    arguments = TrainingArgs(
        batch_size=ROWS, iters=STEPS, steps_per_report=1, steps_per_eval=10**9,
        steps_per_save=10**9, max_seq_length=CONTEXT + 1, grad_checkpoint=True,
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


CONTENDERS = {"edgetune": ours, "mlx-lm": mlx_lm}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Run one contender in a process of its own."""
    command = [sys.executable, __file__, "--contender", name, "--model", str(folder)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def main() -> None:
    """Compare, or be one of the contenders."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--contender", choices=list(CONTENDERS))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(CONTENDERS[arguments.contender](arguments.model)))
        return
    lines = []
    for vocabulary in VOCABULARIES:
        with tempfile.TemporaryDirectory() as folder:
            make_model(Path(folder), vocabulary)
            found = {name: measure(name, Path(folder)) for name in CONTENDERS}
        facts = {
            "machine": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in ("mlx", "mlx-lm")},
            "vocabulary": vocabulary, "rows": ROWS, "context": CONTEXT, "steps": STEPS,
        }  # fmt: skip
        ratio = {key: round(found["edgetune"][key] / found["mlx-lm"][key], 3)
                 for key in ("peak_bytes", "seconds", "busy_seconds")}  # fmt: skip
        lines.append(json.dumps({**facts, **found, "ratio": ratio}))
        print(lines[-1], flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
