"""What the report of a run costs: seconds and bytes of reading and drawing, for runs of some lengths.

    python tools/bench/report_cost.py

One JSON line a length. ``first`` reads the whole log, as ``edgetune report`` does; ``next`` is what a
run at work pays after another hundred steps. A run spends 1 % of its time on it at most
(``ReportWriter``); ``peak_kb`` is what the Python heap grew by.
"""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from edgetune.report import Reader, render
from edgetune.runs import RunFolder

PLAN = (
    "version: 1\nchoice: {method: lora, trainable_parameters: 1000}\n"
    "training: {steps: 100000}\nmemory: {peak_bytes: 362497856}\n"
)


def write_steps(folder: RunFolder, first: int, last: int) -> None:
    """Add steps to a log, with an evaluation after every hundredth."""
    with folder.metrics.open("a") as file:
        for step in range(first, last + 1):
            loss = 1 + 1000 / (step + 500) + (step * 7919 % 101) / 500
            line = {
                "event": "step", "step": step, "loss": loss, "tokens": 343, "loss_tokens": 90,
                "seconds": 0.1315393409999, "learning_rate": 0.0009, "grad_norm": 2.642201185,
                "peak_bytes": 328359936, "epoch": 0,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
            if step % 100 == 0:
                file.write(json.dumps({"event": "eval", "step": step, "loss": loss}) + "\n")


def measured(reader: Reader) -> tuple[float, int]:
    """Return the processor's seconds of a report, and its bytes."""
    begun = time.process_time()
    page = render(reader.read(running=True))
    return round(time.process_time() - begun, 4), len(page.encode())


def cost(steps: int) -> dict[str, Any]:
    """Return what the report of a run of some steps costs."""
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.plan.write_text(PLAN)
        folder.checkpoints.mkdir()
        write_steps(folder, 1, steps)
        reader = Reader(folder)
        first, nbytes = measured(reader)
        write_steps(folder, steps + 1, steps + 100)
        following, _ = measured(reader)
        tracemalloc.start()
        measured(Reader(folder))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return {
        "steps": steps, "first_seconds": first, "next_seconds": following, "bytes": nbytes,
        "peak_kb": peak // 1000,
    }  # fmt: skip


if __name__ == "__main__":
    for length in (100, 1_000, 10_000, 100_000):
        print(json.dumps(cost(length)), flush=True)
