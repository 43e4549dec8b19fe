"""A real model from a GGUF file and back: plan, train, score before and after, export, ask the file.

Ends with 0 only if the untuned model fails on the held-out rows, the tuned one succeeds, and the
exported file gives the right answer to a request that is not among the rows.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

from demo import AFTER_AT_LEAST, BEFORE_AT_MOST, HELD_OUT, ROOT, ROWS, edgetune, scores
from fetch_real_model import real_model

RUN = "runs/demo-real"
EXPORTED = "runs/demo-real.gguf"
SOME = "runs/demo-real-heldout.jsonl"
COUNT = 25
REQUEST = "Could you please switch on the lamp in the kitchen at half past six?"
ANSWER = "set lamp kitchen on at 6:30"


def some_held_out() -> str:
    """Write the first of the held-out rows to a file: the base model's answers are long."""
    rows = (ROOT / HELD_OUT).read_text("utf-8").splitlines(keepends=True)
    (ROOT / SOME).write_text("".join(rows[:COUNT]), "utf-8")
    return SOME


def asked(model: str) -> str:
    """Return what a model answers to the request, and show it."""
    print(f'\n$ edgetune generate {model} -p "{REQUEST}"', flush=True)
    command = [sys.executable, "-m", "edgetune", "generate", model, "-p", REQUEST]
    result = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    print(result.stdout, end="")
    return result.stdout.strip()


def main() -> int:
    """Run the demo; 0 if the tuned model learned its task and its file has it."""
    begun, model = time.monotonic(), str(real_model())
    shutil.rmtree(ROOT / RUN, ignore_errors=True)
    (ROOT / EXPORTED).unlink(missing_ok=True)
    edgetune("train", "--model", model, "--data", ROWS, "--output", RUN, "--epochs", "3",
             "--eval-every", "15")  # fmt: skip
    before, after = scores(RUN, some_held_out())
    print(f"Held-out requests answered exactly: {before:.0%} before, {after:.0%} after")
    print(f"\nAsked: {REQUEST}\nRight: {ANSWER}\n\nBefore, by the base model:")
    edgetune("generate", RUN, "--base", "-p", REQUEST)
    tuned = asked(RUN)
    edgetune("export", RUN, "--to", "gguf", "--quantize", "q8_0", "--output", EXPORTED)
    exported = asked(EXPORTED)
    size = (ROOT / EXPORTED).stat().st_size / 1e6
    print(f"\n{EXPORTED} takes {size:.0f} MB. Done in {time.monotonic() - begun:.0f} s.")
    learned = before < BEFORE_AT_MOST and after > AFTER_AT_LEAST
    return 0 if learned and exported == tuned == ANSWER else 1


if __name__ == "__main__":
    sys.exit(main())
