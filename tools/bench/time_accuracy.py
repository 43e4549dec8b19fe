"""How far are the times of plans from the runs that they are for, with cold and cached rates?

    python tools/bench/time_accuracy.py [--output docs/time_accuracy.md]

Each line is `edgetune train` as a user types it, in an empty cache and again with the cache that
the first run left: what its plan says of a step and of the whole, and what the clock says. The
first run's seconds do not count the measurement of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from models import write_model

from edgetune.device import read_device

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "examples" / "home_commands.jsonl"
NEAR = 0.30


@dataclass(frozen=True)
class Case:
    """A run: the model's profile or ``tiny``, the method and the context."""

    model: str
    method: str
    context: int | None = None
    steps: int | None = None
    quantization: str | None = None
    compute_dtype: str | None = None


CASES = (
    Case("tiny", "lora"),
    Case("tiny", "adapter", context=128, compute_dtype="float32"),
    Case("tiny", "prefix", context=64, steps=60),
    Case("smollm2-135m", "lora", context=256, steps=4),
    Case("smollm2-135m", "bitfit", context=128, steps=4, quantization="nf4"),
    Case("smollm2-360m", "dora", context=128, steps=2),
)


@dataclass(frozen=True)
class Line:
    """What the plan said and the clock showed, in seconds."""

    case: Case
    rates: str
    planned: float
    took: float
    planned_step: float
    step: float


def runs(case: Case, model: str, data: Path) -> Iterator[Line]:
    """Do a run with an empty cache, then with what it left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rates in ("cold", "cached"):
            yield _run(case, model, data, folder, rates)


def _run(case: Case, model: str, data: Path, folder: Path, rates: str) -> Line:
    output = folder / rates
    command = [sys.executable, "-m", "edgetune", "train", "--model", model, "--data", str(data)]
    command += ["--method", case.method, "--output", str(output), "--device", "cpu"]
    for flag in ("context", "steps", "quantization", "compute_dtype"):
        if (value := getattr(case, flag)) is not None:
            command += [f"--{flag.replace('_', '-')}", str(value)]
    environment = {**os.environ, "EDGETUNE_CACHE": str(folder / "cache")}
    measured = folder / "cache" / "measurements.json"
    begun = time.time()
    # output goes to a file, as nobody reads a pipe meanwhile
    with (folder / f"{rates}.log").open("w+", encoding="utf-8") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        if rates == "cold":
            begun = _first_written(measured, running) or begun
        running.wait()  # its exit code is that of what was learned
        ended = time.time()
        if not (output / "metrics.jsonl").exists():
            log.seek(0)
            sys.exit(f"{case}: {log.read()[-2000:]}")
    plan = json.loads(json.dumps(_plan(output)))
    lines = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    run = plan["run"]
    return Line(
        case,
        rates,
        planned=sum(run.values()),
        took=ended - begun,
        planned_step=plan["seconds_per_step"],
        step=median(seconds),
    )


def _first_written(measured: Path, running: subprocess.Popen[bytes]) -> float | None:
    """Return when the machine's rates were kept first; runs write them again at their end."""
    while running.poll() is None:
        if measured.exists():
            return time.time()
        time.sleep(0.05)
    return None


def _plan(output: Path) -> dict[str, object]:
    import yaml

    found: dict[str, object] = yaml.safe_load((output / "plan.yaml").read_text("utf-8"))["time"]
    return found


def table(lines: list[Line]) -> str:
    """Return the lines as a table in Markdown, and what they say together."""
    rows = ["| run | rates | planned | took | ratio | step planned | measured | ratio |"]
    rows.append("|---|---|--:|--:|--:|--:|--:|--:|")
    for line in lines:
        case = line.case
        parts = [case.model, case.method, case.quantization, case.compute_dtype]
        name = " ".join(part for part in parts if part)
        name += f", context {case.context or 'by the plan'}"
        rows.append(
            f"| {name} | {line.rates} | {line.planned:.1f} s | {line.took:.1f} s | "
            f"{line.planned / line.took:.2f} | {line.planned_step:.3f} s | {line.step:.3f} s | "
            f"{line.planned_step / line.step:.2f} |"
        )
    near = sum(abs(line.planned / line.took - 1) <= NEAR for line in lines)
    return "\n".join(rows) + f"\n\n{near} of {len(lines)} runs took within 30 % of the plan.\n"


def text_rows(folder: Path, count: int = 120) -> Path:
    """Write rows of text for the profiles' models, whose tokenizer is the built-in one."""
    path = folder / "rows.jsonl"
    words = re.findall(r"\w+", DEMO.read_text("utf-8"))
    rows = [" ".join(words[i * 37 % 997 :][:150]) for i in range(count)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
    return path


def main() -> None:
    """Run every case and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, help="where models are written and kept")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the cases, from 0")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.models or Path(name)
        lines = []
        for case in [CASES[i] for i in given.only or range(len(CASES))]:
            model = case.model
            if model != "tiny":
                place = folder / model
                if not (place / "config.json").exists():
                    write_model(model, place, {})
                _lend_tokenizer(place)
                model = str(place)
            data = DEMO if case.model == "tiny" else text_rows(Path(name))
            for line in runs(case, model, data):
                print(line, file=sys.stderr)
                lines.append(line)
    text = _HEAD.format(day=time.strftime("%Y-%m-%d"), device=read_device("cpu").name)
    text += table(lines)
    print(text)
    if given.output:
        given.output.write_text(text, "utf-8")


def _lend_tokenizer(place: Path) -> None:
    """Put the built-in tokenizer into a folder of random weights: its vocabulary is smaller."""
    tiny = ROOT / "profiles" / "edgetune_profiles" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_bytes((tiny / name).read_bytes())


_HEAD = """# Times of plans against runs

Made by `tools/bench/time_accuracy.py` on {day}, {device}. The first run of a pair begins with an
empty cache: it measures the machine before it plans.

"""

if __name__ == "__main__":
    main()
