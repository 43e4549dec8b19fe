"""What do hostile, odd and ill-timed inputs come to: exit code, seconds, memory?

    python tools/bench/hostile_inputs.py /tmp/hostile --output hostile.jsonl [--only TEXT ...]

Each is one command in a folder of its own, where a finished run and rows are. Memory is the largest
resident set of any of its processes, above that of a process which has only imported the libraries
that the command needs. This process stays small, because what is forked is counted as it was before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread

from hostile import contents, disk, names
from hostile.case import LEARN, Case

SECONDS, MEGABYTES, MESSAGE = 10.0, 300, 1500
"""What one may take, and the letters that its message may have."""

IMPORTS = {
    "data": "import edgetune.cli.data, edgetune.data, numpy, pyarrow, tokenizers, transformers, jinja2",
    "engine": "import edgetune.cli.train, edgetune.data, transformers, tokenizers, jinja2, torch; "
    "import edgetune_torch.session",
}
GIVE_UP = 120.0


@dataclass(frozen=True)
class Outcome:
    """What came of one input."""

    about: str
    expected: int
    code: int
    seconds: float
    megabytes: int
    said: str

    @property
    def fine(self) -> bool:
        """Whether it is as it must be."""
        told = bool(self.said) and "Traceback" not in self.said and len(self.said) < MESSAGE
        return (
            self.code == self.expected
            and (told or self.code == 0)
            and self.seconds <= SECONDS
            and self.megabytes <= MEGABYTES
        )


def spent(
    command: Sequence[str | bytes], case: Case | None, here: Path
) -> tuple[int, float, int, str]:
    """Run a command; return its exit code, seconds, largest resident set in bytes, and its message."""
    environment = {**os.environ, "EDGETUNE_CACHE": str(here / "cache")}
    read, told = os.pipe()
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=here, env=environment, stdout=subprocess.DEVNULL, stderr=told,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if case is not None and case.room is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (case.room, case.room))
    os.close(told)
    if case is not None and case.during is not None:
        Thread(target=_meanwhile, args=(case, here), daemon=True).start()
    with os.fdopen(read, "rb") as stream:
        said = stream.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, seconds, 1024 * used.ru_maxrss, said.decode("utf-8", "replace")


def _meanwhile(case: Case, here: Path) -> None:
    """Wait until a run has its first metrics, then interfere."""
    assert case.during is not None
    until = time.monotonic() + GIVE_UP
    while not (here / "new" / "metrics.jsonl").exists():
        if time.monotonic() > until:
            return
        time.sleep(0.002)
    case.during(here)


def outcomes(folder: Path, only: Sequence[str]) -> Iterator[Outcome]:
    """Prepare a finished run, then try every input in a copy of its folder."""
    base = folder / "base"
    if not (base / "run" / "adapter").exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        _rows(base / "rows.jsonl")
        code, *_, said = spent(_edgetune(*LEARN, "--output", "run"), None, base)
        if code:
            sys.exit(said)
    libraries = {
        name: spent([sys.executable, "-c", text], None, base)[2] for name, text in IMPORTS.items()
    }
    for case in (*names.CASES, *contents.CASES, *disk.CASES):
        if only and not any(text in case.about for text in only):
            continue
        here = folder / "here"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(base, here, symlinks=True)
        code, seconds, nbytes, said = spent(_edgetune(*case.make(here)), case, here)
        above = max(0, nbytes - libraries[case.loads]) // 1_000_000
        yield Outcome(case.about, case.code, code, round(seconds, 1), above, said.strip())


def _edgetune(*arguments: str | bytes) -> list[str | bytes]:
    return [sys.executable, "-m", "edgetune", *arguments]


def _rows(file: Path) -> None:
    lines = (Path(__file__).parents[2] / "examples" / "home_commands.jsonl").read_text("utf-8")
    file.write_text("".join(lines.splitlines(keepends=True)[:20]), "utf-8")


def table(found: Sequence[Outcome]) -> str:
    """Return the outcomes as a table in Markdown, and what they say together."""
    rows = ["| input | exit code | seconds | MB above the libraries |", "|---|--:|--:|--:|"]
    for item in found:
        code = (
            str(item.code) if item.code == item.expected else f"**{item.code}** ({item.expected})"
        )
        rows.append(f"| {item.about} | {code} | {item.seconds:.1f} | {item.megabytes} |")
    fine = sum(item.fine for item in found)
    return (
        "\n".join(rows) + f"\n\n{fine} of {len(found)} end with the right exit code and one message"
        f" within {SECONDS:.0f} s and {MEGABYTES} MB.\n"
    )


def main() -> None:
    """Try every input, write a line each, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT")
    given = parser.parse_args()
    found = []
    for outcome in outcomes(given.folder.resolve(), given.only):
        found.append(outcome)
        print("  " if outcome.fine else "!!", outcome, file=sys.stderr, flush=True)
    if given.output:
        text = "".join(json.dumps(asdict(item)) + "\n" for item in found)
        given.output.write_text(text, "utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
