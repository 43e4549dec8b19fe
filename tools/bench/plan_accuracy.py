"""How far are plans from the runs that they are for? Memory and time, planned and measured.

    python tools/bench/plan_accuracy.py /tmp/models --output docs/plan_accuracy.md

Each run is a process of its own: it loads what a run loads and a model with random weights, takes
a step and an evaluation in every length that there is up to the context, then steps on full rows,
and reads out a checkpoint's tensors, one file after the other. Memory on a processor is anonymous
memory; bytes that nothing is done with stand for the model's tokenizer, as plans count it.
Run `edgetune devices --measure` first, so that times are planned by what was measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from models import load_libraries, write_model

from edgetune.buckets import buckets
from edgetune.data.batch import full_batch
from edgetune.device import read_device
from edgetune.memory.costs.base import TOKEN
from edgetune.methods import METHODS
from edgetune.model import LocalModel
from edgetune.planning import Plan, make_plan
from edgetune.settings.spec import Checkpointing
from edgetune.units import format_bytes
from edgetune.workflows.opening import open_session
from edgetune.workflows.planning import measured

MODELS = ("smollm2-360m", "qwen2.5-0.5b")
FAMILIES = ("lora", "adapter", "prompt", "bitfit")
DTYPES = ("float32", "bfloat16")
STEPS = {"bfloat16": 30, "float32": 10}
"""After a step in every length: 16-bit products may still keep something then, others do not."""


@dataclass(frozen=True)
class Case:
    """One run: what is fixed of its plan."""

    model: str
    method: str
    quantization: str
    context: int
    checkpointed: bool
    dtype: str


@dataclass(frozen=True)
class Line:
    """What was planned and measured of a run, in bytes and seconds a step."""

    case: Case
    planned_bytes: int
    peak_bytes: int
    planned_seconds: float
    seconds: float


def cases(models: Sequence[str], methods: Sequence[str]) -> Iterator[Case]:
    """Yield the runs: all models, methods and types; formats, contexts, checkpointing in turn."""
    turns = [("none", 128, False), ("nf4", 256, True), ("none", 512, True), ("nf4", 128, False)]
    for index, method in enumerate(methods):
        for turn, (dtype, model) in enumerate(product(DTYPES, models)):
            quantization, context, checkpointed = turns[(index + turn) % len(turns)]
            fixed = "none" if method == "full" else quantization
            yield Case(model, method, fixed, context, checkpointed, dtype)


def plan_for(case: Case, model: LocalModel) -> Plan:
    """Return the plan of a case."""
    device = read_device("cpu")
    layers = model.shape.layers if case.checkpointed else 0
    fixed = {
        "method": case.method, "quantization": case.quantization, "context": case.context,
        "checkpointing": Checkpointing(layers=layers), "micro_batch": 1, "accumulation": 1,
        "placement": "resident", "optimizer": "adamw", "compute_dtype": case.dtype,
    }  # fmt: skip
    return make_plan(
        device, model.ref, model.shape, fixed=fixed, training={}, measured=measured(device)
    )


def run(case: Case, folder: Path, steps: int) -> Line:
    """Plan and do a run in this process."""
    load_libraries()
    model = LocalModel.open(folder)
    tokenizer = np.ones(TOKEN * model.shape.vocabulary, np.uint8)
    plan = plan_for(case, model)
    batch = full_batch(1, case.context, model.shape.vocabulary)
    session, seconds = open_session(plan, model), []
    for width in buckets(case.context)[1:]:  # a row of one token has nothing to learn
        row = full_batch(1, width, model.shape.vocabulary)
        session.step([row], loss_tokens=row.loss_tokens, learning_rate=1e-4)
        session.evaluate([row])
    for _ in range(steps):
        begun = time.perf_counter()
        session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-4)
        seconds.append(time.perf_counter() - begun)
    session.evaluate([batch])
    session.adapter_tensors(copied=False)
    session.optimizer_tensors(copied=False)
    peak = session.memory().peak_bytes
    session.close()
    del tokenizer
    planned, expected = plan.memory.peak_bytes, plan.time.seconds_per_step
    return Line(case, planned, peak, expected, median(seconds[1:]))


def table(lines: list[Line]) -> str:
    """Return the lines as a table in Markdown, and what they say together."""
    header = (
        "| model | method | type | weights | context | checkpointed | planned | measured | over | "
    )
    rows = [header + "step planned | measured |", "|---|---|---|---|--:|---|--:|--:|--:|--:|--:|"]
    for line in lines:
        case, over = line.case, line.planned_bytes - line.peak_bytes
        share = over / line.peak_bytes
        rows.append(
            f"| {case.model} | {case.method} | {case.dtype} | {case.quantization} | {case.context} | "
            f"{'all' if case.checkpointed else 'none'} | {format_bytes(line.planned_bytes)} | "
            f"{format_bytes(line.peak_bytes)} | {format_bytes(over)} ({share:+.1%}) | "
            f"{line.planned_seconds:.2f} s | {line.seconds:.2f} s |"
        )
    return "\n".join(rows) + "\n\n" + _summary(lines) + "\n"


def _summary(lines: list[Line]) -> str:
    over = [line.planned_bytes - line.peak_bytes for line in lines]
    near = [
        0 <= o <= max(0.05 * line.peak_bytes, 60e6) for o, line in zip(over, lines, strict=True)
    ]
    right = [abs(line.planned_seconds / line.seconds - 1) <= 0.25 for line in lines]
    return (
        f"{sum(o >= 0 for o in over)} of {len(lines)} runs stayed within the plan; "
        f"{sum(near)} within 5 % or 60 MB of it. "
        f"{sum(right)} of {len(lines)} step times were within 25 % of the plan."
    )


def main() -> None:
    """Run every case and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where models are written and kept")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--found", type=Path, help="lines of runs: those that are there are kept")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--steps", type=int, help="of full rows, instead of 30 and 10")
    parser.add_argument("--methods", nargs="+", default=list(FAMILIES), choices=list(METHODS))
    parser.add_argument("--case", help="run one case, given as JSON, in this process")
    given = parser.parse_args()
    if given.case:
        case = Case(**json.loads(given.case))
        steps = given.steps or STEPS[case.dtype]
        print(json.dumps(asdict(run(case, given.folder / case.model, steps))))
        return
    for model in given.models:
        if not (given.folder / model / "config.json").exists():
            write_model(model, given.folder / model, {})
    found = _found(given.found)
    lines = [found.get(case) or _apart(case, given) for case in cases(given.models, given.methods)]
    steps = given.steps or "{bfloat16} (float32: {float32})".format_map(STEPS)
    text = _HEAD.format(steps=steps, day=date.today(), device=read_device("cpu").name) + table(
        lines
    )
    print(text)
    if given.output:
        given.output.write_text(text, "utf-8")


def _apart(case: Case, given: argparse.Namespace) -> Line:
    """Do a run in a process of its own."""
    command = [sys.executable, __file__, str(given.folder), "--case", json.dumps(asdict(case))]
    if given.steps:
        command += ["--steps", str(given.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{case}: {done.stderr[-2000:]}")
    told = done.stdout.splitlines()[-1]
    print(told, file=sys.stderr)
    if given.found:
        with given.found.open("a") as file:
            file.write(told + "\n")
    return _line(told)


def _line(told: str) -> Line:
    plain = json.loads(told)
    return Line(**{**plain, "case": Case(**plain["case"])})


def _found(file: Path | None) -> dict[Case, Line]:
    """Return the runs that were done already."""
    if file is None or not file.exists():
        return {}
    return {line.case: line for line in map(_line, file.read_text().splitlines())}


_HEAD = """# Plans against runs

Made by `tools/bench/plan_accuracy.py` on {day}, {device}. Memory is anonymous memory at its
peak: loading, a step and an evaluation in every length, {steps} steps on full rows, and what a
checkpoint holds; times are medians. Bytes that nothing is done with stand for the tokenizer.

"""

if __name__ == "__main__":
    main()
