"""Make the built-in model `tiny`: its text, its tokenizer, its training, its folder.

    python tools/make_tiny_model.py            # about ten minutes on two CPU cores
    python tools/make_tiny_model.py --check    # only report on the folder that is there

Everything is seeded, and no text comes from elsewhere: the same machine with the same versions of
torch and tokenizers makes the same bytes. On another machine or version the order of floating-point
additions differs, so expect an equally good model there, not an identical file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tiny_model.report import report
from tiny_model.train import Recipe, make
from transformers.utils import logging

FOLDER = Path(__file__).parents[1] / "profiles" / "edgetune_profiles" / "tiny"


def main() -> None:
    """Make the folder unless only the check is asked for, then report."""
    parser = argparse.ArgumentParser(description="make the built-in tiny model")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the model")
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="optimizer steps")
    parser.add_argument("--check", action="store_true", help="only report on the folder")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    if not arguments.check:
        make(arguments.output, Recipe(steps=arguments.steps), _say)
    for line in report(arguments.output):
        _say(line)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
