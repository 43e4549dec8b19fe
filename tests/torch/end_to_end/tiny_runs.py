"""What the runs of the built-in model share: how they are made, read and waited for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rows import Cli, call

from edgetune.files import sha256_file

EXAMPLES = Path(__file__).parents[3] / "examples"
STEPS = 8
LEARN = ("train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl",
         "--steps", str(STEPS), "--learning-rate", "0.01", "--eval-every", "2",
         "--save-every", "3", "--seed", "5")  # fmt: skip
CHECKPOINT = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors",
              "state.json"]  # fmt: skip
LONGEST = 24


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def learned(run: Path) -> dict[str, Any]:
    """Return everything that a run came to, but what differs by the clock and the machine."""
    volatile = {"seconds", "peak_bytes"}
    return {
        "metrics": [
            {k: v for k, v in line.items() if k not in volatile}
            for line in lines(run / "metrics.jsonl")
        ],
        **{
            str(file.relative_to(run)): sha256_file(file)
            for part in ("adapter", "checkpoints")
            for file in sorted((run / part).rglob("*"))
            if file.is_file()
        },
    }


def wait_for_steps(run: Path, count: int) -> None:
    """Wait until a run has logged some steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = run / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count('"step", ') >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{run} took no {count} steps")


def wait_for(path: Path) -> None:
    """Wait until a file or folder is there."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was never made"
        time.sleep(0.01)


def resume(run: Path, *more: str | Path) -> None:
    called = call("train", "--resume", "--output", run.name, *more, cwd=run.parent)
    assert called.code == 0, called.err


def held_out_prompts(count: int) -> list[str]:
    rows = lines(EXAMPLES / "home_commands_heldout.jsonl")[:count]
    return [row["messages"][0]["content"] for row in rows]


def generated(cli: Cli, run: Path, prompts: list[str], *more: str) -> list[str]:
    asked = [item for prompt in prompts for item in ("-p", prompt)]
    called = cli("generate", run, *asked, "--max-tokens", str(LONGEST), "--json", "-q", *more)
    assert (called.code, called.err) == (0, "")
    answers = json.loads(called.out)
    assert [answer["prompt"] for answer in answers] == prompts
    return [answer["text"] for answer in answers]


def exported(cli: Cli, run: Path, to: str, output: Path) -> Path:
    called = cli("export", run, "--to", to, "--output", output, "--json")
    assert called.code == 0, called.err
    assert to != "hf" or json.loads(called.out)["check"]["rows"] > 0
    return output
