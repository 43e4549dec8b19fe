"""Does a 7 B model train on a laptop's CPU? Peaks, resident and streamed, beside the plan's.

    python tools/bench/large.py /tmp/large --output tools/bench/results/large.jsonl

Writes the Llama-2-7B shape with random weights (13 GB), trains real steps of 512 tokens with
resident weights and with everything on disk, and deletes the weights and the cache again.
``--hollow`` is for models that the disk has no room for: the matrices of blocks are holes in their
files, and only the cache of NF4 blocks (17 GB of qwen3-30b-a3b) is written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from hollow import draw_cache, write_hollow
from models import write_model
from peer_edgetune import plan_for
from peer_work import Work
from peers import CONTENDERS, Places, line, run, show

from edgetune.device import read_device
from edgetune.memory import estimate
from edgetune.model import LocalModel
from edgetune.planning.capability import platform_of
from edgetune.units import format_bytes

NEEDED = 22_000_000_000
"""Bytes on disk: the shards, the quantized cache, and room to spare."""


def measure(model: LocalModel, work: Work, name: str, cache: Path) -> dict[str, Any]:
    """Return one line: what was measured, and what the plan says of the same choice."""
    found = line(name, work, [run(name, work, str(cache), Places())])
    plan = plan_for(work, model, json.loads(CONTENDERS[name][1]))
    platform = platform_of(read_device("cpu"))
    planned = estimate(model.shape, plan.choice, platform).peak_bytes
    return {**found, "planned_peak": planned}


def main() -> None:
    """Write, measure, delete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder", type=Path, help="an empty place with 22 GB, hollow with twice the cache"
    )
    parser.add_argument("--profile", default="llama-2-7b")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", default=["edgetune-disk", "edgetune"])
    parser.add_argument("--hollow", action="store_true")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(given.folder).free < NEEDED:
        sys.exit(f"{given.folder} has less than {format_bytes(NEEDED)} free.")
    try:
        write = write_hollow if given.hollow else write_model
        model = LocalModel.open(write(given.profile, given.folder / "model", {}))
        if given.hollow:
            print(f"cache: {format_bytes(draw_cache(model, 'nf4', given.folder / 'cache'))}")
        work = Work(
            model=str(model.folder), tokens=given.tokens, steps=given.steps,
            vocabulary=model.shape.vocabulary,
        )  # fmt: skip
        for name in given.contenders:
            item = measure(model, work, name, given.folder / "cache")
            item["work"]["model"] = given.profile
            show([item])
            print(f"planned: {format_bytes(item['planned_peak'])}")
            if given.output:
                with given.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(item) + "\n")
    finally:
        shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
