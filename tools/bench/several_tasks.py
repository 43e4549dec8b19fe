"""Are several tasks worth more than one? A prompt from a like task, five prompts as one, LoRAHub.

    python tools/bench/several_tasks.py spot --output tools/bench/results/several_tasks.jsonl
    python tools/bench/several_tasks.py ensemble lorahub --seeds 3 --output ...

All on the built-in model. ``spot``: for each of five devices of the example task a prompt is
trained for 50 steps from random numbers, from common tokens, and from the prompt that is most like
a probe of 20 steps among those of four other devices and two other tasks. ``ensemble``: five prompts of
the commands of one device, from five seeds, by vote. ``lorahub``: five LoRAs, of a
device each, are combined on 32 rows of all devices. Each line has the losses, and what they are of.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, redirect_stdout
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "bench")]

from make_example_task import example  # noqa: E402
from tasks import TASKS  # noqa: E402

from edgetune.cli import run as command  # noqa: E402
from edgetune.workflows.combining import CombineRequest, combine  # noqa: E402
from edgetune.workflows.ensemble import ensemble  # noqa: E402
from edgetune.workflows.inspecting import similarity  # noqa: E402
from edgetune.workflows.over import Over  # noqa: E402
from edgetune.workflows.references import open_references  # noqa: E402
from edgetune.workflows.scoring import dataset_of, replies_of, score_replies  # noqa: E402

Row = Mapping[str, Any]

DEVICES = ("lamp", "heater", "radio", "gate", "door")
OTHERS = ("labels", "style")
TRAINED, HELD_OUT = 96, 40
RATE = {"prompt": 5e-2, "lora": 2e-3}


def rows_of_device(device: str, count: int, seed: int) -> list[Row]:
    """Return requests about one device, all different, with their commands."""
    rng, found = Random(seed), dict[str, str]()
    while len(found) < count:
        request, command = example(rng)
        if command.split()[1] == device:
            found.setdefault(request, command)
    return [{"prompt": request, "completion": command} for request, command in found.items()]


def write(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows and return the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


class Bench:
    """Runs of one seed in a folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Write the rows of all tasks."""
        self.folder, self.seed = folder, seed
        self.held: dict[str, list[Row]] = {}
        for device in DEVICES:
            rows = rows_of_device(device, TRAINED + HELD_OUT, seed)
            self.held[device] = rows[TRAINED:]
            self._write(device, rows[:TRAINED])
        for name in OTHERS:
            rows, held = TASKS[name].rows()
            self.held[name] = held
            self._write(name, rows)

    def _write(self, name: str, rows: Sequence[Row]) -> None:
        write(self.folder / f"{name}.jsonl", rows)
        write(self.folder / f"{name}-held-out.jsonl", self.held[name])

    def train(self, name: str, data: str, steps: int, *settings: str, method: str) -> str:
        """Train in this process and return the run's folder."""
        run = str(self.folder / name)
        begun = (
            settings if "--from" in settings else ("--model", "tiny", "--method", method, *settings)
        )
        asked = ["train", *begun, "--output", run, "--data", str(self.folder / f"{data}.jsonl"),
                 "--steps", str(steps), "--device", "cpu", "--micro-batch", "8", "--accumulation", "1",
                 "--validation", "0", "--no-verdict", "--samples", "0", "--seed", str(self.seed),
                 "--learning-rate", str(RATE[method]), "-q"]  # fmt: skip
        with redirect_stdout(StringIO()):
            if code := command(asked):
                raise SystemExit(code)
        return run

    def losses(self, runs: Sequence[str], data: str, *, exact: bool = False) -> list[Any]:
        """Return the scores of runs on the held-out rows of a task."""
        found = open_references(runs)
        with closing(found[0].session):
            each = dict(zip(runs, found, strict=True))
            rows = dataset_of(found[0], self.folder / f"{data}-held-out.jsonl").train
            replies = replies_of(each, rows, None, exact_match=exact, show=0)
            scores, _ = score_replies(each, rows, None, replies, exact_match=exact, show=0)
        return [scores[run] for run in runs]


def spot(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield for each device the losses of 50 steps from three starts."""
    sources = {
        name: bench.train(f"source-{name}", name, 100, method="prompt")
        for name in (*DEVICES, *OTHERS)
    }
    for device in DEVICES:
        probe = bench.train(f"probe-{device}", device, 20, method="prompt")
        others = [run for name, run in sources.items() if name != device]
        near = str(similarity([probe, *others], Over()).nearest)
        starts = {
            "random": bench.train(
                f"random-{device}", device, 50, "--prompt-initial", "random", method="prompt"
            ),
            "tokens": bench.train(f"tokens-{device}", device, 50, method="prompt"),
            "source": bench.train(f"spot-{device}", device, 50, "--from", near, method="prompt"),
        }
        losses = [x.loss for x in bench.losses([*starts.values(), near], device)]
        yield {
            "target": device, "taken": Path(near).name.removeprefix("source-"),
            **dict(zip((*starts, "source untrained"), losses, strict=True)),
        }  # fmt: skip


def of_ensemble(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield how many commands for one device five prompts answer right, each alone and by vote."""
    names, first = [], 10 * bench.seed
    for number in range(5):
        bench.seed = first + number
        names.append(bench.train(f"prompt-{number}", "gate", 200, method="prompt"))
    opened = open_references(names)
    with closing(opened[0].session):
        rows = dataset_of(opened[0], bench.folder / "gate-held-out.jsonl").train
        each = dict(zip(names, opened, strict=True))
        replies = replies_of(each, rows, None, exact_match=True, show=0)
        scores, _ = score_replies(each, rows, None, replies, exact_match=True, show=0)
        together = ensemble(each, rows, None, replies, exact_match=True)
    singles = [found.exact_match or 0.0 for found in scores.values()]
    assert together.answers is not None
    yield {
        "singles": singles, "mean single": mean(singles), "best single": max(singles),
        "vote": together.answers.exact_match, "losses": [found.loss for found in scores.values()],
    }  # fmt: skip


def lorahub(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the losses on rows of all devices: of LoRAs of one device each, and of their combination."""
    names = [bench.train(f"lora-{device}", device, 60, method="lora") for device in DEVICES]
    mixed = [row for device in DEVICES for row in rows_of_device(device, 20, 1000 + bench.seed)]
    Random(bench.seed).shuffle(mixed)
    few = write(bench.folder / "few.jsonl", mixed[:32])
    bench.held["mixed"] = mixed[32:]
    write(bench.folder / "mixed-held-out.jsonl", mixed[32:])
    output = bench.folder / "combined"
    found = combine(CombineRequest(names=tuple(names), output=output, how="lorahub", data=few))
    whole = bench.losses([*names, str(output)], "mixed", exact=True)
    singles, hub = whole[:-1], whole[-1]
    yield {
        "singles": [one.loss for one in singles], "best single": min(one.loss for one in singles),
        "combined": hub.loss, "weights": list(found.weights), "rows": len(mixed) - 32,
        "best single, exact": max(one.exact_match for one in singles), "combined, exact": hub.exact_match,
    }  # fmt: skip


QUESTIONS: Mapping[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "spot": spot,
    "ensemble": of_ensemble,
    "lorahub": lorahub,
}


def main() -> None:
    """Ask the questions that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="+", choices=QUESTIONS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    for seed in range(given.seeds):
        for question in given.questions:
            with tempfile.TemporaryDirectory() as folder:
                for found in QUESTIONS[question](Bench(Path(folder), seed)):
                    date = datetime.now(timezone.utc).date().isoformat()
                    line = json.dumps({"question": question, "seed": seed, **found, "date": date})
                    print(line, flush=True)
                    if given.output is not None:
                        with given.output.open("a", encoding="utf-8") as file:
                            file.write(line + "\n")


if __name__ == "__main__":
    main()
