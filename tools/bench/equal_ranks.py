"""Whether several ranks learn the bits that one process learns: losses and adapters after many steps.

    python tools/bench/equal_ranks.py [--device cpu] [--worlds 2 4] [--steps 50] [--methods lora bitfit]

`tiny` in float32, packed rows, five micro-batches a step, and fewer in the last one of an epoch. All runs add gradients
up in as many parts as the largest world has ranks; ``--parts 1`` lets each add them up as it would by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from edgetune.tensors.reader import read_tensors

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("lora", "adapter", "prefix", "bitfit")


def main() -> None:
    """Train with one process and with several, and print how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--parts", type=int)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--accumulation", type=int, default=5)
    asked = parser.parse_args()
    parts = asked.parts or max(asked.worlds)
    for method in asked.methods:
        with tempfile.TemporaryDirectory() as folder:
            alone = _run(Path(folder) / "1", method, asked, ranks=1, parts=parts)
            for ranks in asked.worlds:
                own = max(parts, ranks)
                found = _run(Path(folder) / str(ranks), method, asked, ranks=ranks, parts=own)
                print(json.dumps({"method": method, "ranks": ranks, **_apart(found, alone)}))
                sys.stdout.flush()


def _run(folder: Path, method: str, asked: argparse.Namespace, *, ranks: int, parts: int) -> Path:
    command = [
        sys.executable, "-m", "edgetune", "train", "--model=tiny", f"--device={asked.device}",
        f"--data={ROOT / 'examples' / 'home_commands.jsonl'}", f"--output={folder}",
        f"--method={method}", f"--steps={asked.steps}", f"--nproc={ranks}", "--micro-batch=1",
        f"--accumulation={asked.accumulation}", f"--context={asked.context}",
        f"--gradient-parts={parts}",
        "--compute-dtype=float32", "--validation=0.1", f"--save-every={asked.steps}",
        "--no-verdict", "--samples=0", "--quiet",
    ]  # fmt: skip
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return folder


def _apart(found: Path, expected: Path) -> dict[str, float]:
    """Return the largest distances: of losses, relative; of adapters, of the norm and the maximum."""
    losses = [_losses(folder) for folder in (found, expected)]
    one, other = (
        np.concatenate([x.ravel() for _, x in sorted(_adapter(folder).items())]).astype(np.float64)
        for folder in (found, expected)
    )
    return {
        "steps": len(losses[1]),
        "losses": max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True)),
        "adapter": float(np.linalg.norm(one - other) / np.linalg.norm(other)),
        "largest": float(np.abs(one - other).max() / np.abs(other).max()),
    }


def _losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines]


def _adapter(folder: Path) -> dict[str, np.ndarray]:
    newest = max((folder / "checkpoints").glob("step-*"))
    return dict(read_tensors(newest / "adapter_model.safetensors"))


if __name__ == "__main__":
    main()
