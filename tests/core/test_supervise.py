"""A parent and its workers, as small programs: what is told, who ends with whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgetune.device.cgroup import kills_for_memory
from edgetune.workflows.supervise import RESTARTS, Ended

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a command has no parent here")


PROGRAM = """
import json, os, signal, sys, time
from edgetune.cli import _reported
from edgetune.cli.process import Process
from edgetune.workflows.supervise import supervise

def die(number):
    os.kill(os.getpid(), number)
    time.sleep(60)

def begin(strict=False, rows=8):
    worker.can_resume(["again"], command="edgetune resume", rows=rows, strict=strict)

process = Process.here()
worker, interrupts = process.worker, process.interrupts
if worker is None:
    sys.exit(_reported([], lambda: supervise(sys.argv[1:], print)))
print(sys.argv[1], worker.recovery.rows if worker.recovery else "-", flush=True)
"""

GOES_ON = """
worker.can_resume(["again"], command="edgetune resume",
                  rows=worker.recovery.rows if worker.recovery else 8, strict=False)
if worker.recovery is None or worker.recovery.rows > 1:
    worker.saved(8 // worker.recovery.rows if worker.recovery else 0)
    die(signal.SIG{})
sys.exit(6)
"""

WAITS = """
with interrupts.patiently(lambda: print("asked", flush=True)) as stop:
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print("stopping", flush=True)
    time.sleep({})
sys.exit(6)
"""


def begin(body: str, **options: object) -> subprocess.Popen[str]:
    """Start a parent whose workers run some code."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + body, "first"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Return exit code, lines and the last line of errors."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), (err.splitlines() or [""])[-1]


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    """Read what is printed up to a line."""
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    raise AssertionError(f"{line} was never printed")


def worker_of(process: subprocess.Popen[str]) -> int:
    """Return the process that a parent watches."""
    import psutil

    (worker,) = psutil.Process(process.pid).children()
    return int(worker.pid)


@pytest.mark.parametrize("code", [0, 2, 6, 7])
def test_the_exit_code_is_the_workers(code: int) -> None:
    assert finish(begin(f"sys.exit({code})")) == (code, ["first -"], "")


@pytest.mark.parametrize(
    ("name", "death"),
    [
        ("KILL", "was killed from outside (SIGKILL)"),
        ("ABRT", "was aborted in native code (SIGABRT)"),
    ],
)
def test_a_worker_that_dies_has_a_successor_with_fewer_rows(name: str, death: str) -> None:
    code, lines, error = finish(begin(GOES_ON.format(name)))
    told = f"The training process {death}. Resuming from step"
    assert (code, error) == (6, "")
    assert lines == [
        "first -",
        f"{told} 0 with at most 4 rows at once.",
        "again 4",
        f"{told} 2 with at most 2 rows at once.",
        "again 2",
        f"{told} 4 with at most 1 rows at once.",
        "again 1",
    ]


@pytest.mark.parametrize(
    ("reported", "rows"), [("True", [4, 4, 4]), ("worker.recovery is None", [4, 2, 1])]
)
def test_without_progress_it_ends(reported: str, rows: list[int]) -> None:
    """Successors may die before they report anything: what those before them said holds."""
    body = f"if {reported}:\n    begin(); worker.saved(3)\ndie(signal.SIGSEGV)"
    code, lines, error = finish(begin(body))
    assert (code, len(rows)) == (7, RESTARTS)
    assert [line for line in lines if line.startswith("again")] == [f"again {x}" for x in rows]
    assert error == (
        "Error: The training process crashed in native code (SIGSEGV) 4 times without a new "
        "checkpoint. Step 3 is saved: close other programs and go on with: edgetune resume"
    )


def test_strict_allows_no_fewer_rows() -> None:
    code, lines, error = finish(begin("begin(strict=True); worker.saved(3); die(signal.SIGKILL)"))
    assert (code, lines) == (7, ["first -"])
    assert "--strict allows no fewer rows at once. Step 3 is saved" in error


@pytest.mark.parametrize(("name", "code"), [("KILL", 7), ("SEGV", 1)])
def test_a_command_that_saves_nothing_is_not_repeated(name: str, code: int) -> None:
    found, lines, error = finish(begin(f"die(signal.SIG{name})"))
    assert (found, lines) == (code, ["first -"])
    assert error.startswith("Error: The process of this command ")


def test_a_worker_that_is_told_to_end_has_no_successor() -> None:
    process = begin("begin(); interrupts.listen(passed_on=False)\n"
                    "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
                    "print('ready', flush=True); time.sleep(60)")  # fmt: skip
    wait_for(process, "ready")
    os.kill(worker_of(process), signal.SIGTERM)
    assert finish(process)[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("SIGINT", "parent"),
        ("SIGINT", "worker"),
        ("SIGINT", "both"),
        ("SIGTERM", "parent"),
        ("SIGHUP", "both"),
    ],
)
def test_asked_once_it_stops_when_it_can(name: str, to: str) -> None:
    process = begin(WAITS.format(0.3), start_new_session=True)
    wait_for(process, "ready")
    send(process, name, to)
    assert finish(process)[:2] == (6, ["asked", "stopping"])


@pytest.mark.parametrize("to", ["parent", "worker", "both"])
def test_asked_twice_it_stops_at_once(to: str) -> None:
    process = begin(WAITS.format(60), start_new_session=True)
    wait_for(process, "ready")
    send(process, "SIGINT", to)
    wait_for(process, "stopping")
    send(process, "SIGINT", to)
    code, _, error = finish(process)
    assert code not in {0, 6}
    assert "KeyboardInterrupt" in error


def send(process: subprocess.Popen[str], name: str, to: str) -> None:
    number = getattr(signal, name)
    if to == "parent":
        process.send_signal(number)
    elif to == "worker":
        os.kill(worker_of(process), number)
    else:
        os.killpg(process.pid, number)


def test_a_worker_that_dies_while_it_stops_has_no_successor() -> None:
    process = begin("begin(); worker.saved(5)" + WAITS.format(0) .replace("sys.exit(6)", "")
                    + "die(signal.SIGKILL)")  # fmt: skip
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    code, _, error = finish(process)
    assert code == 6
    assert error.endswith("while it stopped. Step 5 is saved. Continue with: edgetune resume")


def test_what_was_ignored_stays_ignored() -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    nohup = f"{ignoring}; import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    process = subprocess.Popen(
        [sys.executable, "-c", nohup, "-c", PROGRAM + WAITS.format(0), "first"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(process, "ready")
    send(process, "SIGHUP", "both")
    time.sleep(0.2)
    send(process, "SIGINT", "both")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.splitlines()) == (6, ["asked", "stopping"])


def test_a_closed_terminal_asks_to_stop() -> None:
    shell, terminal = os.openpty()
    own = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", own, "-c", PROGRAM + WAITS.format(0), "first"],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while b"ready" not in shown:
        shown += os.read(shell, 1024)
    os.close(shell)
    assert process.wait(60) == 6


def test_what_is_passed_on_at_the_very_end_kills_nobody() -> None:
    late = """
class Late:
    def __del__(self, kill=os.kill, number=os.getpid(), passed_on=signal.SIGUSR2):
        kill(number, passed_on)

late = Late()
sys.exit(6)
"""
    assert finish(begin(late))[0] == 6


def test_that_nobody_reads_is_no_reason_to_stop() -> None:
    code = "from edgetune.cli.show import complain, draw; draw('a'); complain('b'); draw('c')"
    read, write = os.pipe()
    os.close(read)
    try:
        assert subprocess.call([sys.executable, "-c", code], stderr=write) == 0
    finally:
        os.close(write)


def test_a_worker_ends_with_its_parent() -> None:
    process = begin("print('ready', flush=True); time.sleep(60)")
    wait_for(process, "ready")
    process.kill()
    assert gone(process)


def test_where_the_system_does_not_end_it_the_pipe_does() -> None:
    body = """
import os, sys
from edgetune.workflows.worker import end_with_pipe
life, own_end = os.pipe()
if os.fork() == 0:
    os.close(own_end)
    end_with_pipe(life)
    print("ready", flush=True)
    while True:
        pass
os.wait()
"""
    process = subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE, text=True)
    wait_for(process, "ready")
    process.kill()
    assert gone(process)


def gone(process: subprocess.Popen[str]) -> bool:
    """Return whether all that hold the output of a killed process end soon."""
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_a_parent_imports_next_to_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from edgetune.cli import main; sys.argv[1:] = ['train']\n"
        "try:\n    main()\nfinally:\n    print(*sorted(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 2
    loaded = set(run.stdout.split())
    assert "edgetune.workflows.supervise" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "mlx", "yaml", "edgetune.planning"})


class Files:
    """A machine whose counters are given."""

    def __init__(self, **files: str) -> None:
        self.files = files

    def read_text(self, path: str) -> str | None:
        return self.files.get(path)


@pytest.mark.parametrize("version", [1, 2])
def test_kills_of_the_group_and_of_the_machine_are_counted(version: int) -> None:
    files = {
        1: {
            "/proc/self/cgroup": "4:memory:/job\n0::/\n",
            "/proc/self/mountinfo": "30 25 0:26 / /cg/memory rw - cgroup cgroup rw,memory\n",
            "/cg/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        },
        2: {
            "/proc/self/cgroup": "0::/job\n",
            "/proc/self/mountinfo": "30 25 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
            "/cg/job/memory.events": "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\n",
        },
    }[version]
    assert kills_for_memory(Files(**files)) == 2
    assert kills_for_memory(Files(**files, **{"/proc/vmstat": "pgfault 5\noom_kill 40\n"})) == 42
    assert kills_for_memory(Files()) == 0


@pytest.mark.parametrize(("platform", "said"), [("darwin", True), ("linux", False)])
def test_on_a_mac_an_abort_names_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, platform: str, said: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    aborted = Ended(code=-signal.SIGABRT, killed_by_system=False)
    killed = Ended(code=-signal.SIGKILL, killed_by_system=False)

    assert ("docs/laptop.md" in str(aborted.death)) == said
    assert "docs/laptop.md" not in str(killed.death)
