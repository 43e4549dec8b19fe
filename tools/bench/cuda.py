"""On a machine with an NVIDIA card: are we right, how large is CUDA itself, how good is the plan?

    python tools/bench/cuda.py MODEL [--trl FOLDER] [--output FILE]

Runs ``tests/cuda`` and the kernels' tests, then measures what lies outside torch's allocator, the error of the planned
peak over several choices, and the time of a step against the peers at caps of 4 to 24 GB. Each
measurement is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from peer_work import Work
from peers import CONTENDERS, Places, line, run

from edgetune.model import LocalModel

ROOT = Path(__file__).parents[2]
CAPS = (4, 6, 8, 12, 16, 24)

CONTEXT = """
import json
from edgetune.device import read_device
free = read_device("cuda").free_bytes  # by the driver, before there is a context
import torch
torch.zeros(1, device="cuda")
x = torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16)
x @ x
torch.cuda.synchronize()
left = read_device("cuda").free_bytes
print(json.dumps({
    "name": torch.cuda.get_device_name(), "free": free,
    "total": torch.cuda.get_device_properties(0).total_memory,
    "context": free - left - torch.cuda.memory_reserved(),
    "workspace": torch.cuda.memory_allocated() - x.nbytes,
    "reserved": torch.cuda.memory_reserved(),
}))
"""


def tests() -> dict[str, Any]:
    """Run the tests for cards, and those of the kernels, which are interpreted elsewhere."""
    kernels = "tests/torch/test_kernels.py"
    command = [sys.executable, "-m", "pytest", "-q", "tests/cuda", kernels]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"question": "tests", "code": done.returncode, "said": done.stdout.splitlines()[-1:]}


def runtime() -> dict[str, Any]:
    """Return the bytes of the context and of cuBLAS' workspace, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CONTEXT], capture_output=True, text=True, check=True
    )
    return {"question": "runtime", **json.loads(done.stdout)}


def against_peers(work: Work, trl: str | None) -> list[dict[str, Any]]:
    """Return a line a contender at every cap; ours has the plan's own prediction beside it."""
    found = []
    names = [name for name in CONTENDERS if name not in {"edgetune-disk", "unsloth"}]
    with tempfile.TemporaryDirectory(dir=Path(work.model).parent) as cache:
        for cap in CAPS:
            limited = replace(work, cap=cap * 10**9)
            for name in names:
                result = run(name, limited, cache, Places(trl=trl))
                item = {"question": "peers", **line(name, limited, [result])}
                found.append({**item, "peak_card": result.get("peak_card")})
    return found


def predictions(work: Work) -> list[dict[str, Any]]:
    """Return planned and measured peaks over a spread of choices."""
    script = Path(__file__).with_name("cuda_predict.py")
    done = subprocess.run(
        [sys.executable, str(script), work.model], capture_output=True, text=True, check=False
    )
    lines = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]
    return [{"question": "prediction", **item} for item in lines]


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--trl", metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    work = Work(
        model=str(given.model.resolve()), tokens=given.tokens, steps=6, device="cuda",
        vocabulary=LocalModel.open(given.model).shape.vocabulary,
    )  # fmt: skip
    lines = [tests(), runtime(), *predictions(work), *against_peers(work, given.trl)]
    for item in lines:
        print(json.dumps(item))
    given.output.mkdir(parents=True, exist_ok=True)
    name = str(lines[1]["name"]).lower().replace(" ", "-")
    text = "".join(json.dumps(item) + "\n" for item in lines)
    (given.output / f"cuda-{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
