"""How far are plans from the runs that they are for? Memory and time, planned and measured.

    python tools/bench/plan_accuracy.py /tmp/models --output docs/plan_accuracy.md

Each run is a process of its own: it loads a model with random weights, takes steps on full rows,
evaluates, and reads out what a checkpoint holds. Memory on a processor is anonymous memory; what
plans count for a tokenizer is taken off, as none is loaded.
Run `edgetune devices --measure` first, so that times are planned by what was measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median

from models import write_model

from edgetune.data.batch import full_batch
from edgetune.device import read_device
from edgetune.memory.runtime import TOKEN
from edgetune.methods import METHODS
from edgetune.model import LocalModel
from edgetune.planning import Plan, make_plan
from edgetune.settings.spec import Checkpointing
from edgetune.units import format_bytes
from edgetune.workflows.opening import open_session
from edgetune.workflows.planning import measured

MODELS = ("smollm2-360m", "qwen2.5-0.5b")
FAMILIES = ("lora", "adapter", "prompt", "bitfit")
STEPS = 4


@dataclass(frozen=True)
class Case:
    """One run: what is fixed of its plan."""

    model: str
    method: str
    quantization: str
    context: int
    checkpointed: bool


@dataclass(frozen=True)
class Line:
    """What was planned and measured of a run, in bytes and seconds a step."""

    case: Case
    planned_bytes: int
    peak_bytes: int
    planned_seconds: float
    seconds: float


def cases(methods: tuple[str, ...]) -> Iterator[Case]:
    """Yield the runs: every model and method, quantizations, contexts and checkpointing in turn."""
    turns = [("none", 128, False), ("nf4", 256, True), ("none", 512, True), ("nf4", 128, False)]
    for index, method in enumerate(methods):
        for turn, model in enumerate(MODELS * 2):
            quantization, context, checkpointed = turns[(index + turn) % len(turns)]
            fixed = "none" if method == "full" else quantization
            yield Case(model, method, fixed, context, checkpointed)


def plan_for(case: Case, model: LocalModel) -> Plan:
    """Return the plan of a case."""
    device = read_device("cpu")
    layers = model.shape.layers if case.checkpointed else 0
    fixed = {
        "method": case.method, "quantization": case.quantization, "context": case.context,
        "checkpointing": Checkpointing(layers=layers), "micro_batch": 1, "accumulation": 1,
        "placement": "resident", "optimizer": "adamw",
    }  # fmt: skip
    return make_plan(
        device, model.ref, model.shape, fixed=fixed, training={}, measured=measured(device)
    )


def run(case: Case, folder: Path) -> Line:
    """Plan and do a run in this process."""
    model = LocalModel.open(folder)
    plan = plan_for(case, model)
    batch = full_batch(1, case.context, model.shape.vocabulary)
    session, seconds = open_session(plan, model), []
    for _ in range(STEPS):
        begun = time.perf_counter()
        session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-4)
        seconds.append(time.perf_counter() - begun)
    session.evaluate([batch])
    held = session.adapter_tensors(), session.optimizer_tensors()
    peak = session.memory().peak_bytes
    del held
    session.close()
    planned = plan.memory.peak_bytes - TOKEN * model.shape.vocabulary  # none is loaded here
    return Line(case, planned, peak, plan.time.seconds_per_step, median(seconds[1:]))


def table(lines: list[Line]) -> str:
    """Return the lines as a table in Markdown, and what they say together."""
    header = "| model | method | weights | context | checkpointed | planned | measured | over | "
    rows = [header + "step planned | measured |", "|---|---|---|--:|---|--:|--:|--:|--:|--:|"]
    for line in lines:
        case, over = line.case, line.planned_bytes - line.peak_bytes
        share = over / line.peak_bytes
        rows.append(
            f"| {case.model} | {case.method} | {case.quantization} | {case.context} | "
            f"{'all' if case.checkpointed else 'none'} | {format_bytes(line.planned_bytes)} | "
            f"{format_bytes(line.peak_bytes)} | {format_bytes(over)} ({share:+.1%}) | "
            f"{line.planned_seconds:.2f} s | {line.seconds:.2f} s |"
        )
    return "\n".join(rows) + "\n\n" + _summary(lines) + "\n"


def _summary(lines: list[Line]) -> str:
    over = [line.planned_bytes - line.peak_bytes for line in lines]
    near = [
        0 <= o <= max(0.05 * line.peak_bytes, 100e6) for o, line in zip(over, lines, strict=True)
    ]
    right = [abs(line.planned_seconds / line.seconds - 1) <= 0.25 for line in lines]
    return (
        f"{sum(o >= 0 for o in over)} of {len(lines)} runs stayed within the plan; "
        f"{sum(near)} within 5 % or 100 MB of it. "
        f"{sum(right)} of {len(lines)} step times were within 25 % of the plan."
    )


def main() -> None:
    """Run every case and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where models are written and kept")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(FAMILIES), choices=list(METHODS))
    parser.add_argument("--case", help="run one case, given as JSON, in this process")
    given = parser.parse_args()
    if given.case:
        case = Case(**json.loads(given.case))
        print(json.dumps(asdict(run(case, given.folder / case.model))))
        return
    for model in MODELS:
        if not (given.folder / model / "config.json").exists():
            write_model(model, given.folder / model, {})
    lines = [_apart(case, given.folder) for case in cases(tuple(given.methods))]
    text = _HEAD.format(day=date.today(), device=read_device("cpu").name) + table(lines)
    print(text)
    if given.output:
        given.output.write_text(text, "utf-8")


def _apart(case: Case, folder: Path) -> Line:
    """Do a run in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{case}: {done.stderr[-2000:]}")
    plain = json.loads(done.stdout.splitlines()[-1])
    print(plain, file=sys.stderr)
    return Line(**{**plain, "case": case})


_HEAD = """# Plans against runs

Made by `tools/bench/plan_accuracy.py` on {day}, {device}. Memory is anonymous memory at its
peak, loading, steps, evaluation and what a checkpoint holds included; times are medians.
What plans count for a tokenizer is left out, as none is loaded.

"""

if __name__ == "__main__":
    main()
