"""Does a real model train from its own GGUF file as from the numbers in it? Loss, memory, time.

    make real-model
    python tools/bench/real_model.py --output tools/bench/results/real-model-linux-cpu.jsonl

SmolLM2-135M-Instruct takes the same steps as its Q4_1 file in memory, as that file streamed from
disk, and as a folder of the same numbers in float32. The losses of the first two are held against
the last one's, and each run's peak against its plan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from peer_work import versions
from peers import commit, machine

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from fetch_real_model import real_model  # noqa: E402

from edgetune.data.gguf_tokenizer import save_gguf_tokenizer  # noqa: E402
from edgetune.model import LocalModel  # noqa: E402
from edgetune.tensors.reader import read_rows  # noqa: E402
from edgetune.tensors.writer import Outgoing, row_spans, write_safetensors  # noqa: E402
from edgetune.units import format_bytes  # noqa: E402

DISK = ("--placement", "disk", "--embedding", "disk", "--head", "disk")
FOLDER = "folder of float32"
CLOSE = 1e-5
"""Nats between two losses of the same numbers."""


def dequantized(file: Path, folder: Path) -> Path:
    """Write the numbers of a GGUF file as a folder in float32."""
    folder.mkdir()
    model = LocalModel.open(file)

    def outgoing(name: str) -> Outgoing:
        stored = model.tensors[name]

        def chunks() -> Any:
            for start, stop in row_spans(stored.shape):
                yield read_rows(stored, start, stop).astype("float32", copy=False)

        return Outgoing(name=name, dtype="float32", shape=stored.shape, chunks=chunks)

    write_safetensors(folder / "model.safetensors", [outgoing(name) for name in model.tensors])
    (folder / "config.json").write_text(json.dumps(dict(model.config)))
    save_gguf_tokenizer(file, folder)
    return folder


def train(model: Path, run: Path, places: Sequence[str], given: argparse.Namespace) -> None:
    """Train in a process of its own, as a user would."""
    command = [
        "train", "--model", model, "--data", ROOT / "examples" / "home_commands.jsonl",
        "--output", run, "--steps", given.steps, "--micro-batch", given.rows, "--accumulation", 1,
        "--compute-dtype", given.dtype, "--device", given.device, "--checkpointing", "all",
        "--validation", 0, *places,
    ]  # fmt: skip
    called = [sys.executable, "-m", "edgetune", *map(str, command)]
    subprocess.run(called, check=True, stdout=subprocess.DEVNULL)


def measured(name: str, run: Path) -> dict[str, Any]:
    """Return what a finished run says of itself."""
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = [event for event in events if event["event"] == "step"]
    memory = json.loads((run / "memory.json").read_text())
    return {
        "contender": name,
        "losses": [step["loss"] for step in steps],
        "seconds_per_step": median(step["seconds"] for step in steps),
        "planned_peak": memory["planned_bytes"],
        "peak": memory["peak_bytes"],
    }


def show(found: Mapping[str, Any], expected: Sequence[float]) -> float:
    """Print a line; return how far its losses are from the expected ones."""
    far = max(abs(a - b) for a, b in zip(found["losses"], expected, strict=True))
    print(
        f"{found['contender']:<18} loss {found['losses'][0]:.4f} to {found['losses'][-1]:.4f}, "
        f"at most {far:.1e} apart; {found['seconds_per_step']:.1f} s a step; "
        f"peak {format_bytes(found['peak'])} of {format_bytes(found['planned_peak'])} planned",
        flush=True,
    )
    return far


def main() -> int:
    """Measure, print and keep; 1 if the losses differ in float32 or a peak is over its plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rows", type=int, default=2, help="rows of a step")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    file = real_model()
    with tempfile.TemporaryDirectory() as work:
        folder = dequantized(file, Path(work) / "folder")
        contenders = {
            FOLDER: (folder, ()),
            "Q4_1 in memory": (file, ()),
            "Q4_1 on disk": (file, DISK),
        }
        lines = []
        for number, (name, (model, places)) in enumerate(contenders.items()):
            run = Path(work) / f"run-{number}"
            train(model, run, places, given)
            lines.append(measured(name, run))
    far = [show(line, lines[0]["losses"]) for line in lines]
    if given.output:
        with given.output.open("a", encoding="utf-8") as file_out:
            about = {
                "machine": machine(),
                "versions": versions(),
                "commit": commit(),
                "steps": given.steps,
                "rows": given.rows,
                "dtype": given.dtype,
            }
            file_out.writelines(json.dumps(line | about) + "\n" for line in lines)
    apart = given.dtype == "float32" and max(far) > CLOSE
    over = any(line["peak"] > line["planned_peak"] for line in lines)
    return 1 if apart or over else 0


if __name__ == "__main__":
    sys.exit(main())
