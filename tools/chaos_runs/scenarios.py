"""What is attacked: commands that train, tokenize, cache weights and export; and what they leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_runs.children import Child, End, run
from edgetune.files import sha256_file

DEVICES = {"torch": "cpu", "mlx": "mlx"}
VOLATILE = {"seconds", "peak_bytes"}
ROWS = 60
SMALL = (
    "--rank", "4", "--targets", "q_proj,v_proj", "--layers", "2", "--context", "64",
    "--dropout", "0.1", "--micro-batch", "2", "--accumulation", "1", "--validation", "0.05",
    "--warmup", "0", "--learning-rate", "0.01",
)  # fmt: skip
OFTEN = ("--steps", "4", "--eval-every", "2", "--save-every", "1")
QUANTIZED = {"torch": "nf4", "mlx": "q4"}


@dataclass(frozen=True)
class Scenario:
    """A command whose result is in ``output``; ``resume`` goes on with it, if it can be."""

    name: str
    start: Sequence[str]
    output: str
    resume: Sequence[str] | None = None
    before: Mapping[str, Path] = field(default_factory=dict)
    """Folders that have to be at the place, by name."""

    def prepare(self, place: Path, rows: Path, measured: Path) -> None:
        """Make a new place for the command, where the machine was ``measured`` before."""
        (place / "cache").mkdir(parents=True)
        shutil.copy(rows, place / "rows.jsonl")
        shutil.copy(measured, place / "cache")
        for name, source in self.before.items():
            shutil.copytree(source, place / name, symlinks=True)

    def seconds(self, place: Path, rows: Path, measured: Path) -> float:
        """Return how long the command takes once everything is imported."""
        self.prepare(place, rows, measured)
        return self.attempt(place).seconds

    def command(self, place: Path) -> Sequence[str]:
        """Return the command that begins, or goes on with what is there."""
        is_there = (place / self.output / "plan.yaml").is_file()
        return self.resume if self.resume is not None and is_there else self.start

    def attempt(self, place: Path, child: Child | None = None) -> End:
        """Begin or go on, from the beginning where there is no checkpoint yet."""
        end = run(self.command(place), place, child)
        if child is None and end.code == 2 and "before its first checkpoint" in end.told:
            shutil.rmtree(place / self.output)
            end = run(self.start, place)
        return end

    def result(self, place: Path) -> dict[str, Any]:
        """Return everything that a finished command left, but what the clock decides."""
        output = place / self.output
        files = {
            str(file.relative_to(output)): sha256_file(file)
            for part in (("adapter", "checkpoints") if self.resume else (".",))
            for file in sorted((output / part).rglob("*"))
            if file.is_file() and ".damaged" not in str(file.relative_to(output))
        }
        if self.resume is None:
            return {"files": files}
        lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        metrics = [{k: v for k, v in line.items() if k not in VOLATILE} for line in lines]
        return {"files": files, "metrics": metrics}


def scenarios(backend: str, finished: Path) -> dict[str, Scenario]:
    """Return the scenarios of a backend; ``finished`` is where a finished run is made for export."""
    device = ("--device", DEVICES[backend], "--model", "tiny", "--data", "rows.jsonl")
    resume = ("train", "--resume", "--output", "run")
    train = ("train", *device, *SMALL, *OFTEN, "--output", "run")
    weights = (*train, "--quantization", QUANTIZED[backend], "--placement", "disk")
    export = ("export", "run", "--to", "hf", "--output", "out")
    return {
        "train": Scenario("train", train, "run", resume),
        "weights": Scenario("weights", weights, "run", resume),
        "export": Scenario("export", export, "out", before={"run": finished}),
    }
