"""Names, flags and numbers that a shell can give."""

from __future__ import annotations

import os
from pathlib import Path

from hostile.case import LEARN, Arguments, Case, call, chat, made, write

STEERING = "a\x1b[31m\r\x07\u202eb"
CHECK = ("data", "check", "rows.jsonl")
ASK = ("generate", "run", "--max-tokens", "4")


def _linked(here: Path) -> Arguments:
    (here / "far").mkdir()
    (here / "link").symlink_to("far")
    return ("export", "run", "--to", "hf", "--output", "link")


def _named_base(here: Path) -> Arguments:
    (here / "run").rename(here / "base")
    return ("eval", "base", "--data", "rows.jsonl")


def _not_utf8(here: Path) -> Arguments:
    name = b"rows-\xff.jsonl"
    (here / os.fsdecode(name)).write_text(chat("a") * 20)
    return (*LEARN, "--output", "new", "--data", name)


CASES = (
    Case("train --output .", 2, call(*LEARN, "--output", ".")),
    Case("export --output .", 2, call("export", "run", "--to", "hf", "--output", ".")),
    Case("export to a link to an empty folder", 0, _linked, "engine"),
    Case("export to a dangling link", 2,
         made(lambda here: (here / "link").symlink_to("nowhere"), "export", "run", "--to", "hf",
              "--output", "link")),
    Case("an output that is not UTF-8", 2, call(*LEARN, "--output", b"run-\xff")),
    Case("data whose name is not UTF-8", 2, _not_utf8),
    Case("control characters in the name of data", 4,
         made(write(f"{STEERING}.txt", ""), "data", "check", f"{STEERING}.txt")),
    Case("control characters in the name of a model", 5,
         call("train", "--model", STEERING, "--data", "rows.jsonl", "--output", "new")),
    Case("control characters in a flag", 2, call("plan", "--model", "tiny", f"--{STEERING}")),
    Case("a run folder named base in eval", 0, _named_base, "engine"),
    Case("--memory 6", 2, call("plan", "--model", "tiny", "--memory", "6")),
    Case("--memory 1e400GB", 2, call("plan", "--model", "tiny", "--memory", "1e400GB")),
    Case("generate --top-p 0", 2, call(*ASK, "-p", "Hi", "--top-p", "0")),
    Case("generate --top-p nan", 2, call(*ASK, "-p", "Hi", "--top-p", "nan")),
    Case("generate --temperature inf", 2, call(*ASK, "-p", "Hi", "--temperature", "inf")),
    Case("generate with a seed of 20 digits", 2, call(*ASK, "-p", "Hi", "--seed", "9" * 20)),
    Case("generate with an empty prompt", 0, call(*ASK, "-p", ""), "engine"),
    Case("a prompt beyond the model's positions", 2, call(*ASK, "-p", "lamp " * 3000), "engine"),
    Case("train --learning-rate nan", 2, call(*LEARN, "--learning-rate", "nan", "--output", "new")),
    Case("train --context of 30 digits", 2, call("plan", "--model", "tiny", "--context", "9" * 30)),
    Case("check as it should be", 0, call(*CHECK)),
    Case("training as it should be", 0, call(*LEARN, "--output", "new"), "engine"),
)  # fmt: skip
