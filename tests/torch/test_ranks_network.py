"""Ranks on two machines, which here are two network namespaces with one cable between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from rows import write_rows

NAMESPACES = (["unshare", "-n"], ["unshare", "-rn"])
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29511
LISTENS = "0A"

MACHINES = f"""
set -e
ip link set lo up
unshare -n sleep 600 &
while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
ip link add left type veth peer name right netns $!
ip address add {ADDRESSES[0]}/24 dev left
ip link set left up
nsenter -t $! -n ip link set lo up
nsenter -t $! -n ip address add {ADDRESSES[1]}/24 dev right
nsenter -t $! -n ip link set right up
echo $!
read -r _
kill $!
"""
"""The first machine, which makes the second one; it says the process that lives there."""

STRANGER = """
import socket, sys, time
from pathlib import Path
while True:
    kinds = [Path(f"/proc/{sys.argv[1]}/net/{kind}") for kind in ("tcp", "tcp6")]
    for line in [line for kind in kinds for line in kind.read_text().splitlines()]:
        fields = line.split()
        if fields[3] == "0A":
            port = int(fields[1].partition(":")[2], 16)
            try:
                with socket.create_connection((sys.argv[2], port), timeout=1) as found:
                    found.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                    print("sent", port, flush=True)
            except OSError as error:
                print("refused", port, error, flush=True)
    time.sleep(0.3)
"""


@dataclass(frozen=True)
class Machines:
    """A process on each of two machines, whose networks can be entered."""

    processes: tuple[int, int]

    def start(self, number: int, *command: str, **more: str) -> subprocess.Popen[str]:
        inside = ["nsenter", "-t", str(self.processes[number]), "-n", *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
        return subprocess.Popen(
            inside, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


@pytest.fixture
def machines() -> Iterator[Machines]:
    for namespace in NAMESPACES:
        with suppress(FileNotFoundError):
            process = subprocess.Popen(
                [*namespace, "sh", "-c", MACHINES],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                stderr=subprocess.DEVNULL,
            )
            other = process.stdout.readline()
            if other:
                yield Machines((process.pid, int(other)))
                process.communicate("\n", timeout=10)
                return
            process.wait()
    pytest.skip("no two network namespaces can be joined here: unshare, nsenter, ip and the right")


def tcp_of(process: int) -> Iterator[tuple[str, str, str]]:
    """Yield (own address, other address, state) of every TCP socket on a process's machine."""
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{kind}").read_text().splitlines()[1:]:
            _, own, other, state, *_ = line.split()
            yield _address(own), _address(other), state


def _address(text: str) -> str:
    """Return an address as it is written; of IPv6, those that stand for one of IPv4."""
    last = bytes.fromhex(text.partition(":")[0])[-4:]
    return ".".join(str(part) for part in reversed(last))


def carried(process: int) -> dict[str, int]:
    """Return the bytes that each interface of a process's machine has sent."""
    lines = Path(f"/proc/{process}/net/dev").read_text().splitlines()[2:]
    parts = (line.partition(":") for line in lines)
    return {name.strip(): int(counters.split()[8]) for name, _, counters in parts}


def trained(
    machines: Machines,
    folder: Path,
    more: Callable[[int], dict[str, str]],
    device: str,
    *,
    called_early: bool,
) -> tuple[set[str], str]:
    """Train on both machines while somebody else calls; return whom each spoke with, and the calls.

    The calls begin before the ranks have met, or as soon as they have.
    """
    data = write_rows(folder / "rows.jsonl")
    command = (
        sys.executable, "-m", "edgetune", "train", "--model=tiny", "--steps=10", "--micro-batch=2",
        "--accumulation=2", f"--data={data}", f"--output={folder / 'run'}", "--no-verdict",
        "--samples=0", "--validation=0", f"--device={device}", "--rank-timeout=120", "-q",
    )  # fmt: skip
    ranks = [machines.start(number, *command, **more(number)) for number in (0, 1)]
    here, there = machines.processes
    spoken: set[str] = set()
    stranger = None
    while any(rank.poll() is None for rank in ranks):
        if stranger is None and (called_early or spoken >= {*ADDRESSES}):
            stranger = machines.start(1, sys.executable, "-c", STRANGER, str(here), ADDRESSES[0])
        for process in (here, there):
            found = list(tcp_of(process))
            spoken |= {other for _, other, state in found if state != LISTENS}
        time.sleep(0.1)
    assert stranger is not None, [rank.communicate()[0] for rank in ranks]
    stranger.kill()
    calls, _ = stranger.communicate()
    said = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return spoken, calls


def test_ranks_speak_over_their_cable_and_not_with_strangers(
    machines: Machines, tmp_path: Path
) -> None:
    def place(number: int) -> dict[str, str]:
        return {
            "RANK": str(number),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": ("left", "right")[number],
        }

    spoken, calls = trained(machines, tmp_path, place, "cpu", called_early=True)

    assert spoken == {*ADDRESSES}
    assert f"sent {PORT}" in calls
    assert len({line.split()[1] for line in calls.splitlines() if line.startswith("sent")}) > 1
    there = machines.processes[1]
    assert carried(there)["lo"] == 0
    ranks = json.loads((tmp_path / "run" / "ranks.json").read_text())["ranks"]
    assert len(ranks) == 2


@pytest.mark.long
def test_a_ring_of_mlx_speaks_over_its_cable(machines: Machines, tmp_path: Path) -> None:
    pytest.importorskip("mlx.core")
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"{address}:{PORT}"] for address in ADDRESSES]))

    def place(number: int) -> dict[str, str]:
        return {"MLX_RANK": str(number), "MLX_HOSTFILE": str(hosts)}

    # MLX takes the first that calls for its neighbour: a stranger must come after (docs/distributed.md)
    spoken, _ = trained(machines, tmp_path, place, "mlx", called_early=False)

    assert spoken == {*ADDRESSES}
    assert carried(machines.processes[1])["lo"] == 0
