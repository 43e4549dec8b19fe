"""Disks that are full, checkpoints that changed, folders and caches that are taken away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from hostile.case import LEARN, Case, call, made, write

STATE = "state.json"


def _newest(here: Path) -> Path:
    return max((here / "run" / "checkpoints").glob("step-*"))


def _flip(name: str, *, everywhere: bool = False) -> Callable[[Path], object]:
    def apply(here: Path) -> None:
        found = sorted((here / "run" / "checkpoints").glob("step-*"))
        for checkpoint in found if everywhere else found[-1:]:
            content = bytearray((checkpoint / name).read_bytes())
            content[len(content) // 2] ^= 1
            (checkpoint / name).write_bytes(content)
        shutil.rmtree(here / "run" / "adapter")

    return apply


def _other_adapter(here: Path) -> None:
    shutil.rmtree(here / "run" / "adapter")
    (here / "run" / "adapter").mkdir()
    (here / "run" / "adapter" / "letter").touch()


RESUME = ("train", "--resume", "--output", "run")
NEW = (*LEARN, "--output", "new")

CASES = (
    Case("a full disk before the first checkpoint", 2, call(*NEW), "engine", room=0),
    Case("a full disk after the first checkpoint", 6, call(*NEW), "engine", room=8000),
    Case("an export to a full disk", 2,
         call("export", "run", "--to", "hf", "--output", "out"), "engine", room=100_000),
    Case("a run folder deleted at work", 2, call(*NEW), "engine",
         during=lambda here: shutil.rmtree(here / "new")),
    Case("a run folder moved at work", 6, call(*NEW), "engine",
         during=lambda here: (here / "new").rename(here / "moved")),
    Case("adapter/ made by someone else", 6, made(_other_adapter, *RESUME), "engine"),
    Case("a bit of the newest state.json flipped", 0, made(_flip(STATE), *RESUME), "engine"),
    Case("a bit of the newest optimizer flipped", 0,
         made(_flip("optimizer.safetensors"), *RESUME), "engine"),
    Case("a bit of every state.json flipped", 5, made(_flip(STATE, everywhere=True), *RESUME)),
    Case("a state nested 100,000 deep", 0,
         made(lambda here: (write(STATE, "[" * 100_000)(_newest(here)),
                            shutil.rmtree(here / "run" / "adapter")), *RESUME), "engine"),
    Case("a number of 5,000 digits in every state", 5,
         made(lambda here: [write(STATE, '{"version": ' + "9" * 5000 + "}")(path) for path in
                            (here / "run" / "checkpoints").glob("step-*")], *RESUME)),
    Case("metrics of a run linked to /dev/zero", 0,
         made(lambda here: ((here / "run" / "metrics.jsonl").unlink(),
                            (here / "run" / "metrics.jsonl").symlink_to("/dev/zero"),
                            shutil.rmtree(here / "run" / "adapter")), *RESUME), "engine"),
    Case("the cache deleted", 0,
         made(lambda here: shutil.rmtree(here / "cache"), "eval", "run", "--data", "rows.jsonl"),
         "engine"),
    Case("a cache that cannot be written", 0,
         made(lambda here: (shutil.rmtree(here / "cache"), (here / "cache").write_text("")),
              "eval", "run", "--data", "rows.jsonl"), "engine"),
    Case("a plan of another version", 2,
         made(write("run/plan.yaml", "version: 0\nchoice: {}\nmodel: {ref: tiny}"), *RESUME)),
)  # fmt: skip
