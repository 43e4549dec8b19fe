"""`train --nproc`: processes on this machine that train together, from the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rows import write_rows

from edgetune.tensors.reader import read_tensors

STEPS = 6
SETTINGS = (
    "--model=tiny", "--compute-dtype=float32", f"--steps={STEPS}", "--micro-batch=2",
    "--accumulation=3", "--save-every=3", "--eval-every=3", "--keep=0", "--validation=0.1",
    "--gradient-parts=4",
)  # fmt: skip
LISTENS = "0A"
"""How /proc/net/tcp calls a socket that waits for connections."""
QUICK = ("--no-verdict", "--samples=0", "-q")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "edgetune", "train", *arguments]


def train(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=ONE_THREAD, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines_in(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def losses_of(folder: Path) -> list[float]:
    return [line["loss"] for line in lines_of(folder)]


def adapter_of(folder: Path) -> dict[str, np.ndarray]:
    return dict(read_tensors(folder / "adapter" / "adapter_model.safetensors"))


def assert_same(found: Path, expected: Path) -> None:
    """Two runs are the same in every bit, but for the last ones of sums over validation rows."""
    steps = [
        [line for line in lines_of(folder) if line["event"] == "step"]
        for folder in (found, expected)
    ]
    names = ("loss", "grad_norm", "tokens", "learning_rate")
    for one, other in zip(*steps, strict=True):
        assert [one[name] for name in names] == [other[name] for name in names]
    assert losses_of(found) == pytest.approx(losses_of(expected), rel=1e-14)
    own = adapter_of(found)
    for name, values in adapter_of(expected).items():
        assert own[name].tobytes() == values.tobytes(), name


def assert_near(found: Path, expected: Path) -> None:
    """Two runs differ by the order in which floats are added, and by no more: one was recovered."""
    assert losses_of(found) == pytest.approx(losses_of(expected), rel=1e-6)
    one, other = adapter_of(found), adapter_of(expected)
    difference = sum(float(np.square(one[n] - other[n]).sum()) for n in other) ** 0.5
    assert difference <= 1e-5 * sum(float(np.square(x).sum()) for x in other.values()) ** 0.5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    train(*SETTINGS, *QUICK, f"--data={data}", f"--output={folder}")
    return folder


def test_two_processes_train_what_one_does(data: Path, alone: Path, tmp_path: Path) -> None:
    folder, heard = tmp_path / "two", set()
    asked = command(*SETTINGS, *QUICK, f"--data={data}", f"--output={folder}", "--nproc=2")
    process = subprocess.Popen(asked, env=ONE_THREAD)
    while process.poll() is None:
        heard |= {where for rank in _ranks_of(process.pid) for where in _listened_to_by(rank)}
        time.sleep(0.2)
    assert process.returncode == 0
    assert heard == {"127.0.0.1"}

    assert_same(folder, alone)
    assert "2 ranks" in (folder / "plan.yaml").read_text()
    ranks = json.loads((folder / "ranks.json").read_text())["ranks"]
    assert [rank["share"] for rank in ranks] == [0.5, 0.5]
    assert all(rank["kind"] == "cpu" and rank["seconds"] > 0 for rank in ranks)
    assert all(0 < rank["peak_bytes"] < rank["budget_bytes"] for rank in ranks)
    report = (folder / "report.html").read_text()
    assert report.count("<td>50%</td>") == 2


@pytest.mark.parametrize(
    "ranks", [2, *(pytest.param(ranks, marks=pytest.mark.long) for ranks in (3, 4))]
)
def test_a_run_goes_on_with_another_number_of_processes(
    alone: Path, tmp_path: Path, ranks: int
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(alone, folder, symlinks=True)
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:06}")
    train("--resume", *QUICK, f"--output={folder}", f"--nproc={ranks}")

    assert_same(folder, alone)


def test_what_rank_0_refuses_is_said_once_and_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    asked = ("--model=tiny", f"--data={tmp_path / 'absent'}", "--nproc=2", f"--output={tmp_path}/a")
    said = train(*asked, code=4)
    assert said.count("absent") == 1
    assert "Rank" not in said
    assert time.monotonic() - begun < 60


def test_ranks_without_others_say_so() -> None:
    environment = {**ONE_THREAD, "RANK": "0"}
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    asked = command("--resume", "--output=absent", "--pause")
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "--pause would keep all ranks waiting" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("seed", range(25))
def test_a_rank_that_is_killed_loses_nothing(
    data: Path, alone: Path, tmp_path: Path, rank: int, seed: int
) -> None:
    """The run goes on from its newest checkpoint, in fewer rows at once, or is resumed by hand.

    Of even seeds the moment is some seconds from the start, of odd ones somewhere in the steps.
    """
    folder = tmp_path / "killed"
    asked = command(*SETTINGS, *QUICK, f"--data={data}", f"--output={folder}", "--nproc=2")
    process = subprocess.Popen(asked, env=ONE_THREAD)
    draw = np.random.default_rng(100 * rank + seed)
    written = 0 if seed % 2 == 0 else int(draw.integers(1, STEPS + 2))
    while written and process.poll() is None and lines_in(folder) < written:
        time.sleep(0.02)
    time.sleep(float(draw.uniform(0, 0.3) if written else draw.uniform(1, 12)))
    for victim in _ranks_of(process.pid, rank):
        os.kill(victim, signal.SIGKILL)
    code = process.wait(200)
    assert not _ranks_of(process.pid)
    if code:
        if not (folder / "plan.yaml").exists():  # before there was anything to lose
            return
        train("--resume", *QUICK, f"--output={folder}")
    assert_near(folder, alone)


def _listened_to_by(process: int) -> set[str]:
    """Return the IPv4 addresses of this machine at which a process can be reached."""
    found = set()
    try:
        own = {str(entry.readlink()) for entry in Path(f"/proc/{process}/fd").iterdir()}
        for kind in ("tcp", "tcp6"):
            for line in Path(f"/proc/{process}/net/{kind}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENS and f"socket:[{fields[9]}]" in own:
                    address = bytes.fromhex(fields[1].partition(":")[0])
                    found.add(".".join(map(str, reversed(address[-4:]))))
    except OSError:  # it has ended
        pass
    return found


def _ranks_of(parent: int, rank: int | None = None) -> list[int]:
    """Return the processes that a command has started, or one of its ranks."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            facts = (entry / "stat").read_text().rpartition(")")[2].split()
            variables = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        wanted = b"RANK=" if rank is None else b"RANK=%d" % rank
        if int(facts[1]) == parent and any(each.startswith(wanted) for each in variables):
            found.append(int(entry.name))
    return found
