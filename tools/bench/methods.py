"""What each method learns on the example task: same steps, same rows, several seeds.

    python tools/bench/methods.py --output tools/bench/results/methods.jsonl
    python tools/bench/methods.py --table tools/bench/results/methods.jsonl

The second form writes the table into docs/methods.md. Every run is a process of its own; its
learning rate is the plan's times the method's usual multiple of LoRA's.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from edgetune.methods import METHODS, method_class
from edgetune.units import format_bytes
from edgetune.workflows.references import open_references
from edgetune.workflows.scoring import rows_of, score

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "methods.md"
ROWS, HELD_OUT = "examples/home_commands.jsonl", "examples/home_commands_heldout.jsonl"
MARKS = ("<!-- table: tools/bench/methods.py -->", "<!-- end of table -->")
LORA_RATE = 2e-3

HEAD = (
    "| method | trained parameters | exact match | held-out loss | peak memory | step |\n"
    "|---|---:|---:|---:|---:|---:|\n"
)


def train(run: Path, method: str, *settings: str) -> None:
    """Train in a process of its own."""
    command = [sys.executable, "-m", "edgetune", "train", "--model", "tiny", "--data", ROWS]
    given = ["--output", str(run), "--quiet", "--method", method, *settings]
    subprocess.run([*command, *given], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def measure(method: str, steps: int, seed: int, rows: int) -> dict[str, Any]:
    """Train once and return what came of it."""
    rate = LORA_RATE * method_class(method).rate_factor
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = {"--steps": steps, "--seed": seed, "--learning-rate": rate}
        train(run, method, *(str(part) for pair in settings.items() for part in pair))
        held_out = Path(folder) / "held-out.jsonl"
        lines = (ROOT / HELD_OUT).read_text("utf-8").splitlines()[:rows]
        held_out.write_text("\n".join(lines) + "\n", "utf-8")
        (opened,) = open_references([str(run)])
        scores = score(opened, rows_of(opened, held_out), exact_match=True)
        opened.session.close()
        memory = json.loads((run / "memory.json").read_text("utf-8"))
        seconds = [event["seconds"] for event in _steps(run / "metrics.jsonl")]
        adapter = run / "adapter" / "adapter_model.safetensors"
        return {
            "method": method, "seed": seed, "steps": steps, "learning_rate": rate,
            **asdict(scores),
            "parameters": _parameters(run), "adapter_bytes": adapter.stat().st_size,
            "peak_bytes": memory["peak_bytes"], "seconds_per_step": median(seconds),
            "machine": platform.processor() or platform.machine(),
            "date": datetime.now(timezone.utc).date().isoformat(),
        }  # fmt: skip


def _steps(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "step":
            yield event


def _parameters(run: Path) -> int:
    found = re.search(r"trainable_parameters: (\d+)", (run / "plan.yaml").read_text("utf-8"))
    assert found is not None
    return int(found[1])


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the medians over seeds, with the range of what was learned.

    Of the times the shortest: other programs make a machine look slow.
    """
    lines = []
    for method in dict.fromkeys(result["method"] for result in results):
        runs = [result for result in results if result["method"] == method]
        exact = [run["exact_match"] for run in runs]
        lines.append(
            f"| {method} | {runs[0]['parameters']:,} "
            f"| {median(exact):.0%} ({min(exact):.0%}-{max(exact):.0%}) "
            f"| {median(run['loss'] for run in runs):.3f} "
            f"| {format_bytes(median(run['peak_bytes'] for run in runs))} "
            f"| {1000 * min(run['seconds_per_step'] for run in runs):.0f} ms |\n"
        )
    return HEAD + "".join(lines)


def write_table(results: Path) -> None:
    """Put the table between its marks in the page."""
    lines = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    before, _, rest = PAGE.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n{table(lines)}{MARKS[1]}{after}", "utf-8")


def main() -> None:
    """Measure, or write the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=40, help="Held-out rows that are scored.")
    given = parser.parse_args()
    if given.table is not None:
        write_table(given.table)
        return
    for seed in range(given.seeds):
        for method in given.methods.split(","):
            line = json.dumps(measure(method, given.steps, seed, given.rows))
            print(line, flush=True)
            if given.output is not None:
                with given.output.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
