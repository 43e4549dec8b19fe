"""Is a plan ever under what its engine holds, and how far over is it? Settings drawn over the grid.

    python tools/bench/plan_oracle.py torch --cases 400 --seed 1 --minutes 4 --lines FILE

On torch a step and an evaluation are run on tensors without content; on MLX steps are taken on
small models. A line of FILE is a setting, and what is there is not done again: many short calls
make one long search, and a line that is taken out is tried anew. It takes one core, at low priority.
What is printed is every plan that is under or too far over, then what all lines come to; the exit
code is 1 if there is such a plan.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Figure:
    """Bytes that are planned and that were held.

    How much MLX queues ahead is a matter of luck: ``planned`` counts all of it, ``least`` nothing.
    """

    what: str
    planned: int
    least: int
    held: int

    @property
    def over(self) -> float:
        """Share by which the plan is over what was held."""
        return self.planned / self.held - 1


@dataclass(frozen=True, slots=True)
class Line:
    """One setting and what it came to: figures, or why there is no plan for it."""

    seed: int
    number: int
    setting: str
    figures: list[Figure]
    refused: str | None = None

    @classmethod
    def read(cls, line: str) -> Line:
        """Return what is written in a line."""
        plain = json.loads(line)
        return cls(**plain | {"figures": [Figure(**each) for each in plain["figures"]]})


Settings = Iterator[tuple[str, Callable[[], list[Figure]]]]
"""The words of settings, and what measures each."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Where settings come from, by a number of them and a seed, and how far over plans may be."""

    draw: Callable[[int, int], Settings]
    share: float
    tiny: int
    """Bytes that a plan may be over in any case."""

    def wrong(self, figure: Figure) -> bool:
        """Tell whether a plan is under, or further over than it may be."""
        most = max(self.tiny, self.share * figure.held)
        return figure.planned < figure.held or figure.least - figure.held > most


def drawn_on_torch(count: int, seed: int) -> Settings:
    """Yield the cases of the torch engine's oracle."""
    from oracle import Case, cases, compare

    def figures(case: Case) -> list[Figure]:
        products = {True: "16-bit", False: "float32"}
        return [
            Figure(f"{x.phase}, {products[x.multiplies_16bit]} products", *sizes)
            for x in compare(case)
            for sizes in [(x.planned, x.planned, x.counted)]
        ]

    for case in cases(count, seed):
        yield repr(case), partial(figures, case)


def drawn_on_mlx(count: int, seed: int) -> Settings:
    """Yield settings of small models without end, of which some are refused."""
    from plan_memory import Case, drawn, make, measure

    del count
    with tempfile.TemporaryDirectory() as folder:
        made = cache(lambda model: make(model, Path(folder)))

        def figures(case: Case) -> list[Figure]:
            found = measure(case, made(case.model))
            return [Figure("loading and training", found.planned, found.least, found.peak)]

        for case in drawn(seed):
            yield str(case), partial(figures, case)


BACKENDS: Mapping[str, Backend] = {
    "torch": Backend(drawn_on_torch, 0.02, 0),
    "mlx": Backend(drawn_on_mlx, 0.05, 256_000),
}


def search(backend: Backend, file: Path, *, cases: int, seed: int, minutes: float) -> None:
    """Add lines until so many settings are measured, or the time is over."""
    from edgetune.errors import EdgetuneError

    until = time.monotonic() + 60 * minutes
    own = {line.number: line for line in read(file) if line.seed == seed}
    measured = sum(line.refused is None for line in own.values())
    for number, (words, figures) in enumerate(backend.draw(cases, seed)):
        if measured >= cases or time.monotonic() > until:
            break
        if number in own:
            continue
        try:
            line = Line(seed, number, words, figures())
            measured += 1
        except EdgetuneError as error:
            line = Line(seed, number, words, [], str(error))
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(line)) + "\n")


def read(file: Path) -> list[Line]:
    """Return the lines that there are."""
    return [*map(Line.read, file.read_text("utf-8").splitlines())] if file.exists() else []


def report(backend: Backend, lines: Sequence[Line]) -> int:
    """Print each plan that is wrong and what all come to; return how many are."""
    found = [(line.setting, figure) for line in lines for figure in line.figures]
    wrong = [(setting, figure) for setting, figure in found if backend.wrong(figure)]
    for setting, figure in wrong:
        print(f"{figure.over:+.2%} {figure.what}: {setting}")
    over = sorted(figure.over for _, figure in found)
    summary = {
        "settings": sum(line.refused is None for line in lines), "comparisons": len(found),
        "under": sum(share < 0 for share in over), "wrong": len(wrong),
        "lowest": round(over[0], 5), "median": round(median(over), 5),
        "highest": round(over[-1], 5),
        "highest_least": round(max(x.least / x.held - 1 for _, x in found), 5),
    }  # fmt: skip
    print(json.dumps(summary))
    return len(wrong)


def main() -> int:
    """Search and report; 1 if a plan is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("backend", choices=list(BACKENDS))
    parser.add_argument("--cases", type=int, default=400, help="settings that are measured")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="no setting begins later")
    parser.add_argument("--lines", type=Path, required=True, help="the file of lines")
    given = parser.parse_args()
    os.nice(max(0, 5 - os.nice(0)))
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a framework is loaded
    sys.path[:0] = [str(ROOT / "tests" / part) for part in ("", "torch", "mlx")]
    backend = BACKENDS[given.backend]
    search(backend, given.lines, cases=given.cases, seed=given.seed, minutes=given.minutes)
    return min(1, report(backend, read(given.lines)))


if __name__ == "__main__":
    sys.exit(main())
