"""Attack runs until a number of them was attacked: ``python tools/chaos.py --kills 30``.

Prints a JSON line for each that did not end as it would have without the attack, and one with the
counts. Ends with 0 only if there was none. ``--seed`` is that of the first.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_runs.attacks import draw, flip
from chaos_runs.children import End, import_as, prepare
from chaos_runs.scenarios import DEVICES, ROWS, Scenario, scenarios

from edgetune.speed import save_measurements

ROOT = Path(__file__).resolve().parents[1]
AGAIN = 0.3
"""How often what is resumed is attacked too."""


@dataclass
class Victims:
    """The commands of a backend, and what they come to when they are left alone."""

    backend: str
    work: Path
    scenarios: dict[str, Scenario] = field(default_factory=dict)
    expected: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> Path:
        """Figures of the machine, the same for all commands, so that all are planned alike."""
        return self.work / "measurements.json"

    @classmethod
    def of(cls, backend: str, work: Path) -> Victims:
        """Run every command once without an attack."""
        rows = work / "rows.jsonl"
        lines = (ROOT / "examples" / "home_commands.jsonl").read_text("utf-8").splitlines(True)
        rows.write_text("".join(lines[:ROWS]), "utf-8")
        victims = cls(backend, work)
        from measurements import plain_measurements

        save_measurements(plain_measurements(backend), victims.measured)
        victims.scenarios = scenarios(backend, work / "alone-train" / "run")
        for name, scenario in victims.scenarios.items():
            place = work / f"alone-{name}"
            scenario.prepare(place, rows, victims.measured)
            end = scenario.attempt(place)
            if end.code != 0:
                raise SystemExit(f"{backend} {name} does not even work alone: {end}")
            import_as(place)
            victims.expected[name] = scenario.result(place)
            victims.seconds[name] = scenario.seconds(work / f"timed-{name}", rows, victims.measured)
        return victims

    def attack(self, seed: int) -> tuple[str, str, list[str]]:
        """Attack one command; return which, how, and what went wrong."""
        random_ = random.Random(seed)
        name = random_.choice(("train", "train", "weights", "export"))
        scenario, place = self.scenarios[name], self.work / f"attacked-{seed}"
        scenario.prepare(place, self.work / "rows.jsonl", self.measured)
        kinds, wrong = [], []
        while not kinds or random_.random() < AGAIN:
            attack = draw(random_, self.seconds[name], WRITES[name])
            end = scenario.attempt(place, attack.child)
            kinds.append(attack.kind)
            if not attack.allows(end.code):
                wrong.append(f"{attack}: {_shown(end)}")
            if attack.kind == "bit":
                kinds[-1] += f" ({flip(random_, place / scenario.output)})"
        wrong += self._finish(scenario, place)
        if not wrong:
            shutil.rmtree(place)
        return name, " + ".join(kinds), wrong

    def _finish(self, scenario: Scenario, place: Path) -> list[str]:
        """Let a command come to its end and compare it."""
        if scenario.resume is None and (place / scenario.output).exists():
            end = None  # an export that is there is whole
        else:
            end = scenario.attempt(place)
        if end is not None and end.code != 0:
            return [f"resumed: {_shown(end)}"]
        found, expected = scenario.result(place), self.expected[scenario.name]
        return [
            f"{part} differ: {_difference(found[part], expected[part])}"
            for part in expected
            if found[part] != expected[part]
        ]


WRITES = {"train": 160, "weights": 180, "export": 40}
"""About how many writes a command makes."""


def _shown(end: End) -> str:
    return f"code {end.code} after {end.seconds:.1f} s: {end.told[-600:]}"


def _difference(found: Any, expected: Any) -> str:
    if isinstance(found, dict):
        names = sorted(x for x in {*found, *expected} if found.get(x) != expected.get(x))
        return ", ".join(names[:6])
    pairs = [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]]
    return f"{len(found)} and {len(expected)}: {pairs[:1]}"


def main() -> int:
    """Attack and report; 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--backends", default=",".join(DEVICES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9)
    given = parser.parse_args()
    sys.path.append(str(ROOT / "tests"))
    backends, begun = given.backends.split(","), time.monotonic()
    counts: Counter[str] = Counter()
    lost = 0
    work = Path(tempfile.mkdtemp(prefix="chaos-"))
    for number, backend in enumerate(backends):
        prepare()
        (work / backend).mkdir()
        victims = Victims.of(backend, work / backend)
        share = given.kills // len(backends) + (number < given.kills % len(backends))
        until = begun + 60 * given.minutes * (number + 1) / len(backends)
        for seed in range(given.seed, given.seed + share):
            if time.monotonic() > until:
                break
            name, kinds, wrong = victims.attack(seed)
            for kind in kinds.split(" + "):
                counts[f"{backend} {name} {kind.split(' ')[0]}"] += 1
            counts["attacked"] += 1
            if wrong:
                lost += 1
                told = {"backend": backend, "seed": seed, "what": name, "how": kinds}
                print(json.dumps({**told, "wrong": wrong}), flush=True)
    seconds = round(time.monotonic() - begun)
    print(json.dumps({"lost": lost, "seconds": seconds, "counts": dict(sorted(counts.items()))}))
    if not lost:
        shutil.rmtree(work)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
