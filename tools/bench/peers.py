"""How much memory and time does a step take, against transformers + peft + bitsandbytes, TRL, unsloth?

    python tools/bench/models.py tinyllama-1.1b /tmp/models/1b
    python tools/bench/peers.py /tmp/models/1b --tokens 512 2048 --steps 3

Every contender trains the same rows from the same adapter, each in a process of its own, one after
the other, and ``--rounds`` times in turn. TRL takes part if it is installed (or lies in a folder
given with ``--trl``); unsloth if ``--unsloth`` names the Python of an environment of its own
(``python3 -m venv ENV; ENV/bin/pip install torch==2.13.0 unsloth; ENV/bin/pip uninstall torchvision
xformers``, whose builds are for cards). One JSON line a contender goes to ``--output``; a table is
printed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from peer_work import Work

from edgetune.model import LocalModel
from edgetune.units import format_bytes

HERE = Path(__file__).parent
ON_DISK = {"placement": "disk", "embedding": "disk", "head": "disk"}
CONTENDERS: dict[str, list[str]] = {
    "edgetune": ["peer_edgetune.py", json.dumps({"embedding": "disk"})],
    "edgetune-disk": ["peer_edgetune.py", json.dumps(ON_DISK)],
    "peft": ["peer_hugging_face.py", "loop"],
    "trl": ["peer_hugging_face.py", "trl"],
    "unsloth": ["peer_hugging_face.py", "unsloth"],
}
ROOT = HERE.parent.parent


@dataclass(frozen=True, slots=True)
class Places:
    """Where contenders are that are not installed here."""

    trl: str | None = None
    """A folder with TRL and what it needs."""
    unsloth: str | None = None
    """The Python of unsloth's environment."""


def run(name: str, work: Work, cache: str, places: Places) -> dict[str, Any]:
    """Return what one contender measured of itself."""
    script, argument = CONTENDERS[name]
    python = sys.executable
    environment = {
        **os.environ, "EDGETUNE_CACHE": cache, "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    if name == "unsloth":
        python = places.unsloth or python
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "profiles")))
    elif places.trl:
        environment["PYTHONPATH"] = places.trl
    done = subprocess.run(
        [python, str(HERE / script), json.dumps(asdict(work)), argument],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def line(name: str, work: Work, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one contender's JSON line over all rounds; the first step of each is a warm-up."""
    failed = next((x["failed"] for x in rounds if "failed" in x), None)
    head = {
        "contender": name, "work": asdict(work), "machine": machine(), "commit": commit(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "load_average": os.getloadavg()[0],
    }  # fmt: skip
    if failed is not None:
        return {**head, "failed": failed}
    seconds = [s for found in rounds for s in (found["seconds"][1:] or found["seconds"])]
    return {
        **head,
        "versions": rounds[0]["versions"],
        "rounds": len(rounds),
        "peak_anonymous": max(found["peak_anonymous"] for found in rounds),
        "peak_resident": max(found["peak_resident"] for found in rounds),
        "load_anonymous": max(found["load_anonymous"] for found in rounds),
        "load_seconds": median(found["load_seconds"] for found in rounds),
        "step_seconds": median(seconds),
        "step_seconds_spread": [min(seconds), max(seconds)],
        "losses": rounds[0]["losses"],
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    text = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = [x.partition(":")[2].strip() for x in text.splitlines() if x.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def commit() -> str:
    """Return the commit that is measured."""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def compare(work: Work, names: list[str], rounds: int, places: Places) -> list[dict[str, Any]]:
    """Return one line a contender; they take turns, so that a busy hour hits all."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=Path(work.model).parent) as cache:
        for _ in range(rounds):
            for name in names:
                print(f"  {name} …", file=sys.stderr, flush=True)
                found[name].append(run(name, work, cache, places))
    return [line(name, work, found[name]) for name in names]


def show(lines: list[dict[str, Any]]) -> None:
    """Print a table."""
    print(f"{lines[0]['work']['model']}, {lines[0]['work']['tokens']} tokens")
    print(f"{'':16}{'anonymous':>12}{'resident':>12}{'step':>10}{'load':>10}{'last loss':>12}")
    for item in lines:
        if "failed" in item:
            print(f"{item['contender']:16}{item['failed']}")
            continue
        print(
            f"{item['contender']:16}{format_bytes(item['peak_anonymous']):>12}"
            f"{format_bytes(item['peak_resident']):>12}{item['step_seconds']:>9.2f}s"
            f"{item['load_seconds']:>9.1f}s{item['losses'][-1]:>12.4f}"
        )


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--trl", metavar="FOLDER", help="where TRL and what it needs lie")
    parser.add_argument("--unsloth", metavar="PYTHON", help="that of unsloth's environment")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    places = Places(given.trl, given.unsloth)
    names = given.contenders or [x for x in CONTENDERS if x != "unsloth" or given.unsloth]
    shape = LocalModel.open(given.model).shape
    for tokens in given.tokens:
        work = Work(
            model=str(given.model.resolve()), tokens=tokens, steps=given.steps,
            vocabulary=shape.vocabulary, dtype=given.dtype, learning_rate=given.learning_rate,
        )  # fmt: skip
        lines = compare(work, names, given.rounds, places)
        show(lines)
        if given.output:
            with given.output.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(item) + "\n" for item in lines)


if __name__ == "__main__":
    main()
