"""The main job, as a user would type it: plan, train, score before and after, ask, export.

Ends with 0 only if the untuned model fails on the held-out rows and the tuned one succeeds.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = "examples/home_commands.jsonl"
HELD_OUT = "examples/home_commands_heldout.jsonl"
RUN = "runs/demo"
MERGED = "runs/demo-merged"
REQUEST = "Could you please switch on the lamp in the kitchen at quarter to seven?"

BEFORE_AT_MOST = 0.10
AFTER_AT_LEAST = 0.80


def edgetune(*arguments: str) -> None:
    """Run a command where the user sees it."""
    shown = " ".join(f'"{a}"' if " " in a else a for a in arguments)
    print(f"\n$ edgetune {shown}", flush=True)
    subprocess.run([sys.executable, "-m", "edgetune", *arguments], cwd=ROOT, check=True)


def scores(run: str = RUN, data: str = HELD_OUT) -> tuple[float, float]:
    """Return the shares of held-out rows that the base and the tuned model answer exactly."""
    print(f"\n$ edgetune eval {run} --data {data} --exact-match --json", flush=True)
    command = ["eval", run, "--data", data, "--exact-match", "--json"]
    result = subprocess.run(
        [sys.executable, "-m", "edgetune", *command],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(result.stdout)
    return found["base"]["exact_match"], found["tuned"]["exact_match"]


def main() -> int:
    """Run the demo; 0 if the tuned model learned its task."""
    begun = time.monotonic()
    for folder in (RUN, MERGED):
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        plan = str(Path(folder) / "plan.yaml")
        edgetune("plan", "--model", "tiny", "--data", ROWS, "--output", plan)
    edgetune("train", "--model", "tiny", "--data", ROWS, "--output", RUN)
    before, after = scores()
    print(f"Held-out requests answered exactly: {before:.0%} before, {after:.0%} after")
    print(f"\nAsked: {REQUEST}\n\nBefore, by the base model:")
    edgetune("generate", RUN, "--base", "-p", REQUEST)
    print("\nAfter:")
    edgetune("generate", RUN, "-p", REQUEST)
    edgetune("export", RUN, "--to", "hf", "--output", MERGED)
    print(f"\nDone in {time.monotonic() - begun:.0f} s.")
    return 0 if before < BEFORE_AT_MOST and after > AFTER_AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
