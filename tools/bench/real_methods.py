"""What each method learns, forgets and costs on a real model, at its defaults and beside them.

    make real-model
    python tools/bench/real_methods.py --output tools/bench/results/real-methods.jsonl
    python tools/bench/real_methods.py --table tools/bench/results/real-methods.jsonl

The first form does the runs that the file does not hold yet: SmolLM2-135M-Instruct, every method, each
task of ``tasks.py`` from several seeds; on the first task also at other learning rates. With ``--steps 0``
it does those of the first task alone, for as many epochs as plans give them. ``--factors`` names the
multiples of the rates. The second form writes the tables into docs/methods.md. Every run is ``edgetune
train`` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from real_model import dequantized
from tasks import TASKS, Task

from edgetune.device import read_device
from edgetune.methods import METHODS, build
from edgetune.neutral import drift, neutral_batches
from edgetune.planning.defaults import usual_rate
from edgetune.units import format_bytes
from edgetune.workflows.opened import Opened
from edgetune.workflows.references import open_references
from edgetune.workflows.scoring import dataset_of, labels_of, score_each

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from fetch_real_model import real_model  # noqa: E402

PAGE = ROOT / "docs" / "methods.md"
MARKS = ("<!-- tables: tools/bench/real_methods.py -->", "<!-- end of tables -->")
WIDTH = 576
"""Channels of SmolLM2-135M's hidden state."""
FACTORS = (0.3, 1.0, 3.0, 10.0)
"""Multiples of a method's learning rate."""
SAME = 0.15
"""How far, as a logarithm, two rates may be apart that are the same: they are rounded."""
DENSE = ("full",)
"""Methods that train the model's own matrices, and so need them as numbers."""
VARIANTS = {
    "prefix-network": ("prefix", "--reparameterize"),
    "mam-network": ("mam", "--reparameterize"),
}
"""Methods with a setting of their own, as flags."""


@dataclass(frozen=True)
class Run:
    """One training: what makes it different from the others."""

    task: str
    method: str
    seed: int
    factor: float
    steps: int
    """How many; zero: as many as are planned."""


def wanted(
    methods: Sequence[str], factors: Sequence[float], steps: int, seeds: int
) -> Iterator[Run]:
    """Yield all runs: the first task at its defaults and other rates, other tasks, other seeds."""
    first, *others = TASKS
    for factor in sorted(factors, key=lambda each: each != 1.0):
        yield from (Run(first, method, 0, factor, steps) for method in methods)
    if steps == 0:
        return
    for task in others:
        yield from (Run(task, method, 0, 1.0, steps) for method in methods)
    for seed in range(1, seeds):
        for task in TASKS:
            yield from (Run(task, method, seed, 1.0, steps) for method in methods)


def measure(run: Run, folder: Path) -> dict[str, Any]:
    """Train once and return what came of it."""
    task, output = TASKS[run.task], folder / "run"
    rows, held_out = task.write(folder)
    model = _dense(folder.parent) if run.method in DENSE else real_model()
    command = [sys.executable, "-m", "edgetune", "train", "--model", str(model), "--quiet"]
    kind, *settings = VARIANTS.get(run.method, (run.method,))
    command += ["--data", str(rows), "--output", str(output), "--method", kind, *settings]
    command += ["--seed", str(run.seed), "--eval-every", "30", "--no-verdict", "--samples", "0"]
    command += ["--steps", str(run.steps)] if run.steps else []
    if run.factor != 1.0:
        planned = subprocess.run(
            [*command, "--dry-run"], check=True, capture_output=True, text=True
        )
        rate = float(_found(r"learning rate ([\d.e-]+)", planned.stdout + planned.stderr))
        command += ["--learning-rate", f"{run.factor * rate:.3g}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not (output / "adapter").exists():
        return {**vars(run), "failed": done.stderr.strip().splitlines()[-1:]}
    (opened,) = open_references([str(output)])
    found = {**vars(run), **_scores(opened, held_out, task), **_costs(output)}
    opened.session.close()
    return found


def _dense(folder: Path) -> Path:
    """Return the model's numbers as a folder, which is written once."""
    place = folder / "dense"
    return place if place.exists() else dequantized(Path(real_model()), place)


def _scores(opened: Opened, held_out: Path, task: Task) -> dict[str, Any]:
    dataset = dataset_of(opened, held_out)
    labels, _ = labels_of([opened], dataset)
    found, answers = score_each(
        {"run": opened}, dataset.train, labels, exact_match=True, show=len(dataset.train)
    )
    scores = found["run"]
    right = [task.right(row.answers["run"].strip(), row.expected.strip()) for row in answers]
    quality = sum(right) / len(right) if scores.labels is None else scores.labels.accuracy
    batches = neutral_batches(opened.tokenizer, opened.plan.choice.context, 1)
    neutral = drift(opened.session, batches)
    return {
        "quality": quality, "loss": scores.loss,
        "neutral": exp(neutral.loss), "neutral_base": exp(neutral.base_loss),
        "learning_rate": opened.plan.training.learning_rate,
        "context": opened.plan.choice.context,
    }  # fmt: skip


def _costs(output: Path) -> dict[str, Any]:
    events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    adapter = output / "adapter" / "adapter_model.safetensors"
    plan = (output / "plan.yaml").read_text("utf-8")
    return {
        "steps_done": len(steps),
        "seconds_per_step": median(event["seconds"] for event in steps),
        "peak_bytes": json.loads((output / "memory.json").read_text("utf-8"))["peak_bytes"],
        "adapter_bytes": adapter.stat().st_size,
        "parameters": int(_found(r"trainable_parameters: (\d+)", plan)),
        "device": read_device("cpu").name,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} is not in: {text}"
    return match[1]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Return what was learned at today's defaults, and over learning rates."""
    done = [line for line in results if "failed" not in line]
    every = (*METHODS, *VARIANTS)
    methods = [name for name in every if any(line["method"] == name for line in done)]
    lines = [line for line in done if line["steps"]]
    planned = {line["method"]: line for line in done if not line["steps"] and _is_default(line)}
    default = [line for line in lines if _is_default(line)]
    tasks = [task for task in TASKS if any(line["task"] == task for line in default)]
    heads = [*tasks, "perplexity on neutral text", "as long as planned", "peak", "file"]
    text = f"| method | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}\n"
    for method in methods:
        own = [line for line in default if line["method"] == method]
        if not own:
            continue
        cells = [_qualities([line for line in own if line["task"] == task]) for task in tasks]
        text += (
            f"| {method} | {' | '.join(cells)} | {median(map(_forgotten, own)):+.0%} "
            f"| {_in_short(planned.get(method), steps=True)} "
            f"| {format_bytes(median(line['peak_bytes'] for line in own))} "
            f"| {format_bytes(own[0]['adapter_bytes'])} |\n"
        )
    text += f"\n| method | rate | {tasks[0]} at other rates |\n|---|---:|---|\n"
    for method in methods:
        other = [x for x in done if x["method"] == method and not _is_default(x) and not x["seed"]]
        other.sort(key=lambda line: (line["learning_rate"], line["steps_done"]))
        found = "; ".join(
            f"{line['learning_rate']:.2g}: {_in_short(line, steps=not line['steps'])}"
            for line in other
        )
        text += f"| {method} | {_default_rate(method):.2g} | {found} |\n"
    return text


def _default_rate(method: str) -> float:
    kind, *settings = VARIANTS.get(method, (method,))
    switches = {setting.removeprefix("--"): True for setting in settings}
    return usual_rate(WIDTH, build(kind, switches))


def _is_default(line: dict[str, Any]) -> bool:
    """Return whether a run's rate is today's default: defaults were others once."""
    return _is_like(line, 1.0)


def _is_like(line: dict[str, Any], factor: float) -> bool:
    times = line["learning_rate"] / _default_rate(line["method"])
    return abs(log(times / factor)) < SAME


def _is_of(line: dict[str, Any], run: Run) -> bool:
    same = all(line[name] == getattr(run, name) for name in ("task", "method", "seed", "steps"))
    return same and "failed" not in line and _is_like(line, run.factor)


def _forgotten(line: dict[str, Any]) -> float:
    return float(line["neutral"] / line["neutral_base"] - 1)


def _qualities(lines: Sequence[dict[str, Any]]) -> str:
    if not lines:
        return ""
    values = [line["quality"] for line in lines]
    spread = f" ({min(values):.0%}-{max(values):.0%})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.0%}{spread}"


def _in_short(line: dict[str, Any] | None, *, steps: bool = False) -> str:
    if line is None:
        return ""
    after = f" ({line['steps_done']} steps)" if steps else ""
    return f"{line['quality']:.0%}, {_forgotten(line):+.0%}{after}"


def write_tables(results: Path) -> None:
    """Put the tables between their marks in the page."""
    before, _, rest = PAGE.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n{tables(_read(results))}{MARKS[1]}{after}", "utf-8")


def main() -> None:
    """Do the runs that are missing, or write the tables of those that are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)))
    parser.add_argument("--steps", type=int, default=120, help="zero: as planned")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", type=int, help="end after so many runs")
    given = parser.parse_args()
    if given.table is not None:
        write_tables(given.table)
        return
    there = _read(given.output) if given.output.exists() else []
    factors = [float(each) for each in given.factors.split(",")]
    missing = [
        run
        for run in wanted(given.methods.split(","), factors, given.steps, given.seeds)
        if not any(_is_of(line, run) for line in there)
    ]
    with tempfile.TemporaryDirectory() as kept:
        for run in missing[: given.only]:
            with tempfile.TemporaryDirectory(dir=kept) as folder:
                line = json.dumps(measure(run, Path(folder)))
            print(line, flush=True)
            with given.output.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
