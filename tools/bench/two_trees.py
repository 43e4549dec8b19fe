"""Is a tree as fast, and as small, as another one was? The same runs in both, in turn.

    git worktree add /tmp/before COMMIT
    python tools/bench/two_trees.py /tmp/before --data examples/home_commands.jsonl

Each run is `edgetune train` in a process of its own, with settings that are given, not chosen. A
step is the median of a run's, without its first three, and the fastest of the rounds; a peak the
largest that the process says of itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
WARM = 3
"""Steps that are not looked at."""

PLAIN = ("--micro-batch", "4", "--accumulation", "2", "--context", "64", "--checkpointing", "all")
METHODS = ("lora", "dora", "adapter", "prefix", "prompt", "bitfit", "ia3", "full")
CASES: dict[str, tuple[str, ...]] = {
    **{
        f"tiny, {method}": ("--device", "cpu", "--method", method, "--compute-dtype", "float32")
        for method in METHODS
    },
    "tiny, lora, bfloat16": ("--device", "cpu", "--method", "lora", "--compute-dtype", "bfloat16"),
    "tiny, lora, nf4 from disk": (
        "--device", "cpu", "--method", "lora", "--quantization", "nf4", "--placement", "disk",
        "--compute-dtype", "float32",
    ),
    "tiny, lora, MLX": ("--device", "mlx", "--method", "lora", "--compute-dtype", "float32"),
    "tiny, adapter, q4, MLX": (
        "--device", "mlx", "--method", "adapter", "--quantization", "q4",
        "--compute-dtype", "float32",
    ),
}  # fmt: skip
LARGE = (
    "--device", "cpu", "--method", "lora", "--rank", "8", "--compute-dtype", "bfloat16",
    "--context", "256", "--micro-batch", "2", "--accumulation", "1", "--checkpointing", "all",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a run took: seconds a step, bytes of the process at its peak, and planned ones."""

    seconds: float
    peak: int
    planned: int


def run(tree: Path, flags: tuple[str, ...], data: Path, steps: int, work: Path) -> Found:
    """Train in a tree of the project."""
    paths = [tree, tree / "backends", tree / "profiles"]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "EDGETUNE_CACHE": str(work / f"cache-{tree.name}"),
    }
    with tempfile.TemporaryDirectory(dir=work) as folder:
        output = Path(folder) / "run"
        command = [
            sys.executable, "-m", "edgetune", "train", "--data", str(data), "--output", str(output),
            "--steps", str(steps), "--validation", "0", "--seed", "0", "-q", *flags,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=work, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{tree}: {' '.join(command)}\n{done.stderr[-2000:]}")
        lines = [json.loads(x) for x in (output / "metrics.jsonl").read_text().splitlines()]
        told = json.loads((output / "memory.json").read_text())
    seconds = [line["seconds"] for line in lines if line["event"] == "step"]
    return Found(median(seconds[WARM:]), told["peak_bytes"], told["planned_bytes"])


def main() -> None:
    """Run every case in both trees and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("--after", type=Path, default=ROOT)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--large", help="another model, by its file or folder")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    cases = {name: ("--model", "tiny", *PLAIN, *flags) for name, flags in CASES.items()}
    if given.large:
        cases["large, lora, bfloat16"] = ("--model", given.large, *LARGE)
    trees = given.before.resolve(), given.after.resolve()
    print(
        "| run | step before | after | ratio | peak before | after | ratio | planned before | after |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as work:
        for name, flags in cases.items():
            rounds = [
                [run(tree, flags, given.data.resolve(), given.steps, Path(work)) for tree in trees]
                for _ in range(given.rounds)
            ]
            print(_line(name, *zip(*rounds, strict=True)), flush=True)


def _line(name: str, before: tuple[Found, ...], after: tuple[Found, ...]) -> str:
    seconds = [min(x.seconds for x in found) for found in (before, after)]
    peaks = [max(x.peak for x in found) for found in (before, after)]
    planned = [max(x.planned for x in found) for found in (before, after)]
    cells = [
        name,
        *(f"{1e3 * x:.0f} ms" for x in seconds),
        f"{seconds[1] / seconds[0]:.2f}",
        *(f"{x / 1e6:.0f} MB" for x in peaks),
        f"{peaks[1] / peaks[0]:.2f}",
        *(f"{x / 1e6:.0f} MB" for x in planned),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
