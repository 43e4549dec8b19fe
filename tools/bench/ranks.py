"""Two ranks of one thread against one process of one thread, and what they send each other.

    python tools/bench/ranks.py [--steps 20]
    python tools/bench/ranks.py --paper llama-7b --device rtx-4060-laptop

Each contender is pinned to as many cores as it has ranks, of one thread each; they take turns. Bytes are those of the
loopback interface, so that nothing else may use it meanwhile. ``--paper`` computes from the terms of a plan how
the time of a step goes on with many ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from edgetune.api import plan as make_plan
from edgetune.planning.defaults import ROWS
from edgetune.speed.ranks import gradient_bytes, step_seconds
from edgetune.tensors.reader import read_tensors

ROOT = Path(__file__).resolve().parents[2]
FIRST = 5
"""Steps that warm up: caches, kernels, connections."""

NETWORKS = {"1 Gbit/s": 125e6, "10 Gbit/s": 1.25e9, "Thunderbolt 4": 4e9}


def main() -> None:
    """Measure, or compute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--paper", metavar="MODEL")
    parser.add_argument("--device", default="rtx-4060-laptop")
    asked = parser.parse_args()
    if asked.paper:
        paper(asked.paper, asked.device)
    else:
        measure(asked.steps, asked.turns)


def measure(steps: int, turns: int) -> None:
    """Run both contenders in turn and print ratios."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    sent, adapter = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for ranks in (1, 2):
                run = Path(folder) / f"{turn}-{ranks}"
                before = _loopback()
                short = _run(run.with_name(f"{run.name}-short"), FIRST, ranks)
                between = _loopback()
                long = _run(run, FIRST + steps, ranks)
                after = _loopback()
                rates[ranks].append(_tokens_per_second(long))
                if ranks == 2:
                    sent.append(((after - between) - (between - before)) / steps)
                    tensors = read_tensors(short / "adapter" / "adapter_model.safetensors")
                    adapter = sum(4 * tensor.size for tensor in tensors.values())
    one, two = (median(rates[ranks]) for ranks in (1, 2))
    each = median(sent) / 2
    print(f"tokens/s: one rank {one:.0f}, two {two:.0f}: {two / one:.2f} times as many")
    print(
        f"sent by each rank in a step: {each:,.0f} bytes; gradients of the adapter: "
        f"{gradient_bytes(adapter // 4, 2):,} ({each / gradient_bytes(adapter // 4, 2):.3f} times)"
    )


def _run(folder: Path, steps: int, ranks: int) -> Path:
    command = [
        sys.executable, "-m", "edgetune", "train", "--model=tiny", "--context=256",
        f"--data={ROOT / 'examples' / 'home_commands.jsonl'}", f"--output={folder}",
        f"--steps={steps}", f"--nproc={ranks}", "--micro-batch=4", "--accumulation=4",
        "--compute-dtype=float32", "--validation=0", f"--save-every={steps}", "--no-verdict",
        "--samples=0", "--quiet",
    ]  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))[:ranks]
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *command]
    subprocess.run(pinned, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return folder


def _tokens_per_second(folder: Path) -> float:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["event"] == "step"][FIRST:]
    return median(step["tokens"] / step["seconds"] for step in steps)


def _loopback() -> int:
    """Return the bytes that the loopback interface has carried."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    raise SystemExit("There is no loopback interface to count on.")


def paper(model: str, device: str) -> None:
    """Print the time of a step with many ranks, from the terms of a plan."""
    found = make_plan(model, device=device, micro_batch=1, accumulation=ROWS)
    one, trained = found.time.seconds_per_step, found.choice.method.parameters(found.shape)
    print(
        f"{model} on {device}: {one:.1f} s a step of {ROWS} rows alone; {4 * trained:,} bytes of gradients"
    )
    for rows in (ROWS, 8 * ROWS, 64 * ROWS):
        for name, rate in NETWORKS.items():
            times = []
            for ranks in (1, 2, 8, 64, 512):
                sent = gradient_bytes(trained, ranks)
                times.append((ranks, step_seconds(one / ROWS, rows, ranks, sent, rate)))
            alone = times[0][1]
            told = ", ".join(f"{ranks} ranks {alone / seconds:.1f}" for ranks, seconds in times[1:])
            print(f"{rows} rows a step, {name}: times as fast as one: {told}")


if __name__ == "__main__":
    main()
