"""How much do attacks on prompts cost a prefix, and how much of it does tuning for each batch mend?

    python tools/bench/robust_prefixes.py --output tools/bench/results/robust_prefixes.jsonl

On the built-in model: requests of the example task are answered with the device that they name. A line
for each rate of the tuning.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools")]

from make_example_task import example  # noqa: E402

from edgetune.cli import run as command  # noqa: E402
from edgetune.settings.spec import to_plain  # noqa: E402
from edgetune.workflows.robustness import RobustnessRequest, Steering, robustness  # noqa: E402

DEVICES = ("lamp", "heater", "radio", "gate", "door")
TRAINED, HELD_OUT = 320, 64


def rows(seed: int, devices: Sequence[str]) -> list[str]:
    """Return requests with the one of these devices that they name, all different, as lines."""
    rng, found = Random(seed), dict[str, str]()
    while len(found) < TRAINED + HELD_OUT:
        request, answer = example(rng)
        if (device := answer.split()[1]) in devices:
            found.setdefault(request, device)
    return [json.dumps({"prompt": k, "completion": x}) + "\n" for k, x in found.items()]


def main() -> None:
    """Train a prefix and study it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", default="4e-3")
    parser.add_argument("--tuning-rates", default="0.01,0.05")
    parser.add_argument("--tuning-steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=2, help="That are told apart.")
    parser.add_argument("--settings", default="", help="Further flags of the training.")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, lines = Path(name), rows(given.seed, DEVICES[: given.devices])
        train, held_out = folder / "train.jsonl", folder / "held-out.jsonl"
        train.write_text("".join(lines[:TRAINED]), "utf-8")
        held_out.write_text("".join(lines[TRAINED:]), "utf-8")
        asked = ["train", "--model", "tiny", "--device", "cpu", "--data", str(train), "--method", "prefix",
                 "--steps", str(given.steps), "--learning-rate", given.learning_rate, "--micro-batch", "16",
                 "--accumulation", "1", "--validation", "0", "--no-verdict", "--samples", "0", "--seed",
                 str(given.seed), *given.settings.split(), "--output", str(folder / "run"), "-q"]  # fmt: skip
        with redirect_stdout(StringIO()):
            if code := command(asked):
                raise SystemExit(code)
        last = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
        losses = [one["loss"] for one in map(json.loads, last) if one["event"] == "step"]
        for rate in map(float, given.tuning_rates.split(",")):
            steering = Steering(tuning_steps=given.tuning_steps, tuning_rate=rate)
            found = robustness(
                RobustnessRequest(
                    name=str(folder / "run"), data=held_out, clean=train, steering=steering,
                    seed=given.seed,
                ),
                lambda _: None,
            )  # fmt: skip
            line = json.dumps(
                {"seed": given.seed, "devices": given.devices, "steps": given.steps, "learning_rate": given.learning_rate,
                 "last_loss": losses[-1], "tuning_steps": given.tuning_steps, "tuning_rate": rate,
                 **to_plain(found), "name": "prefix",
                 "date": datetime.now(timezone.utc).date().isoformat()}
            )  # fmt: skip
            print(line, flush=True)
            if given.output is not None:
                with given.output.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
