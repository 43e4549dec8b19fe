"""Does a long row fit? One step in tiles with everything on disk: peak, seconds, loss, the plan's.

    python tools/bench/long_context.py /tmp/long --tokens 16384
    python tools/bench/long_context.py /tmp/long --layers 4 --tokens 32768
    python tools/bench/long_context.py /tmp/long --layers 4 --tokens 2048 --tile 0

Writes a profile's shape with random weights (2.2 GB for the 1.1 B one), if it is not in the folder
yet, trains one step of NF4, rank 16 on all projections and 8-bit AdamW in a process of its own,
and prints one JSON line, which ``--output`` keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from models import write_model
from peer_edgetune import train
from peer_work import ALPHA, RANK, SEED, Result, Work, loading, measured
from peers import commit, machine

from edgetune.choice import Choice
from edgetune.device import read_device
from edgetune.memory import estimate
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.planning import Plan, make_plan
from edgetune.planning.capability import platform_of
from edgetune.settings.spec import Checkpointing
from edgetune.units import format_bytes
from edgetune.workflows.opening import open_session


def plan_for(work: Work, model: LocalModel, tile: int) -> Plan:
    """Return a plan with weights, embedding, head and checkpoints on disk."""
    choice = Choice(
        method=Lora(rank=RANK, alpha=ALPHA),
        quantization="nf4",
        checkpointing=Checkpointing(layers=model.shape.layers, offload="disk"),
        placement="disk",
        embedding="disk",
        head="disk",
        optimizer="adamw-8bit",
        compute_dtype=work.dtype,  # type: ignore[arg-type]
        context=work.tokens,
        micro_batch=1,
        accumulation=1,
        loss_chunk=2048,
        tile=tile,
    )
    device = read_device("cpu")
    training = {"learning_rate": work.learning_rate, "steps": work.steps, "seed": SEED}
    plan = make_plan(device, work.model, model.shape, fixed={"context": 512}, training=training)
    planned = estimate(model.shape, choice, platform_of(device))
    return replace(plan, choice=choice, memory=planned)


def measure(work: Work, tile: int) -> None:
    """Take the step in this process and print what it took."""
    result = Result()
    with measured(result):
        model = LocalModel.open(Path(work.model))
        plan = plan_for(work, model, tile)
        with loading(result):
            session = open_session(plan, model)
        train(session, work, result)
        session.close()
    print(json.dumps({"planned": plan.memory.peak_bytes, **asdict(result)}))


def written(given: argparse.Namespace) -> LocalModel:
    """Return the model in the folder, written if it is not there yet."""
    name = f"{given.profile}-{given.layers or 'all'}"
    if not (given.folder / name / "model.safetensors.index.json").exists():
        changes = {"max_position_embeddings": 1 << 17}
        changes |= {"num_hidden_layers": given.layers} if given.layers else {}
        write_model(given.profile, given.folder / name, changes)
    return LocalModel.open(given.folder / name)


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model is, or is written")
    parser.add_argument("--profile", default="tinyllama-1.1b")
    parser.add_argument("--layers", type=int, help="blocks, all by default")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    model = written(given)
    work = Work(
        model=str(model.folder), tokens=given.tokens, steps=1, dtype=given.dtype,
        vocabulary=model.shape.vocabulary,
    )  # fmt: skip
    environment = {**os.environ, "EDGETUNE_CACHE": str(given.folder / "cache")}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(asdict(work)), str(given.tile)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    head = {"profile": given.profile, "layers": model.shape.layers, "tile": given.tile}
    item = json.dumps(
        {**head, "work": asdict(work), "machine": machine(), "commit": commit()} | found
    )
    print(item)
    print(f"anonymous {format_bytes(found['peak_anonymous'])}, ", end="")
    print(f"planned {format_bytes(found['planned'])}, loss {found['losses'][0]:.6f}")
    if given.output:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(item + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Work(**json.loads(sys.argv[2])), int(sys.argv[3]))
    else:
        main()
