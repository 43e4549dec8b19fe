"""The runs of a folder with what is cheap to know of each; a run that has not changed is not read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Final

from edgetune.files import is_utf8
from edgetune.page.asked import NotThereError
from edgetune.planning.file import LARGEST
from edgetune.report.contents import StatusKind
from edgetune.report.status import status_of
from edgetune.runs.lines import is_measured, is_step, line_of
from edgetune.runs.lock import LOCK, holder

Signature = tuple[object, ...]
Plain = dict[str, Any]

DEEPEST: Final = 3
"""Folders within folders that are looked through for runs."""
HEAD: Final = 1 << 12
"""Bytes of the beginning of a log, in which the base's evaluation stands."""
TAIL: Final = 1 << 14
"""Bytes of the end of a log."""
_LINE: Final = re.compile(r"^((?:  ){0,2})([a-z_]+):(?: +(.+?))? *$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A run in the list; what is not known is None or empty."""

    name: str
    """Its path below the folder, as addresses on the page have it."""
    path: Path
    changed: float
    state: StatusKind = "interrupted"
    because: str = ""
    model: str = ""
    method: str = ""
    data: str = ""
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    validation: float | None = None
    base: float | None = None
    peak_bytes: int = 0
    planned_bytes: int = 0
    holder: int | None = None
    """The process that is at work in it."""

    @property
    def has_adapter(self) -> bool:
        """Whether there is an adapter to use."""
        return (self.path / "adapter").is_dir()

    @property
    def model_name(self) -> str:
        """The last part of what its model is called."""
        return Path(self.model).name


class Listing:
    """Looks through a folder, again and again."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder."""
        self.folder = folder
        self.left_out = 0
        """Folders whose names are not UTF-8, which no address on the page could name."""
        self._known: dict[str, tuple[Signature, Listed]] = {}
        self._lock = Lock()

    def runs(self) -> list[Listed]:
        """Return all runs, those that changed last first."""
        with self._lock:
            paths = list(_runs_in(self.folder))
            named = [path for path in paths if is_utf8(path)]
            self.left_out = len(paths) - len(named)
            found = {str(path.relative_to(self.folder)): path for path in named}
            self._known = {name: item for name, item in self._known.items() if name in found}
            runs = [self._listed(name, path) for name, path in found.items()]
        return sorted(runs, key=lambda run: (run.holder is None, -run.changed, run.name))

    def run(self, name: str) -> Listed:
        """Return one run.

        Raises:
            NotThereError: if there is none of that name in the folder.
        """
        parts = Path(name).parts
        path = self.folder / name
        inside = bool(parts) and not Path(name).is_absolute() and ".." not in parts
        if not inside or "\0" in name or not (path / "plan.yaml").is_file():
            raise NotThereError(f"There is no run {name} in {self.folder}.")
        with self._lock:
            return self._listed(str(Path(name)), path)

    def _listed(self, name: str, path: Path) -> Listed:
        found = signature(path)
        known = self._known.get(name)
        if known is None or known[0] != found:
            known = found, _read(name, path)
            self._known[name] = known
        at_work = holder(path) if _size(path / LOCK) else None
        if at_work is None:
            return known[1]
        return replace(known[1], state="running", because="", holder=at_work)


def _runs_in(folder: Path, depth: int = 1) -> Iterator[Path]:
    """Yield the run folders in a folder, and in folders of it that are none."""
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if (path / "plan.yaml").is_file():
            yield path
        elif depth < DEEPEST and not entry.is_symlink():
            yield from _runs_in(path, depth + 1)


def signature(path: Path) -> Signature:
    """Return what changes whenever a run does."""
    names = ("plan.yaml", "metrics.jsonl", "journal.jsonl", "adapter", "verdict.json")
    return tuple(_stamp(path / name) for name in names)


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(name: str, path: Path) -> Listed:
    plan = _plan(path / "plan.yaml")
    metrics = path / "metrics.jsonl"
    step, evaluation = _last(metrics)
    base = next(_objects(metrics, last=False), {})
    notes = list(_objects(path / "journal.jsonl", last=True))[::-1]
    status = status_of(notes, running=False, finished=False)
    times = [stamp[0] for stamp in signature(path)[:3] if isinstance(stamp, tuple)]
    return Listed(
        name=name,
        path=path,
        changed=max(times, default=0) / 1e9,
        state=status.kind,
        because=status.because,
        **plan,
        step=step["step"] if is_step(step.get("step")) else 0,
        loss=_number(step, "loss"),
        peak_bytes=_number(step, "peak_bytes") or 0,
        validation=_number(evaluation, "loss"),
        base=_number(base, "loss") if base.get("step") == 0 else None,
    )


def _last(metrics: Path) -> tuple[Plain, Plain]:
    """Return the last step and the last evaluation after one, empty where there is none."""
    found: dict[str, Plain] = {}
    for line in _objects(metrics, last=True):
        if (event := line.get("event")) == "step" or line.get("step"):
            found.setdefault(str(event), line)
        if "step" in found and "eval" in found:
            break
    return found.get("step", {}), found.get("eval", {})


def _plan(file: Path) -> dict[str, Any]:
    """Return what the list shows of a plan; nothing of one that is not as we write it."""
    try:
        with file.open("rb") as opened:
            found = _scalars(opened.read(LARGEST).decode())
    except (OSError, ValueError):
        return {}
    rank, method = found.get("choice.rank"), found.get("choice.method", "")
    return {
        "model": found.get("model.ref", ""),
        "method": f"{method} {rank}" if rank else method,
        "data": Path(found.get("data.path", "")).name,
        "steps": _whole(found.get("training.steps")) or _planned_steps(found),
        "planned_bytes": _whole(found.get("memory.peak_bytes")) or 0,
    }


def _scalars(text: str) -> dict[str, str]:
    """Return the values of a plan file by their path, as they stand there.

    A tenth of the time of a parser, which a thousand runs make felt. Lists are left out.

    >>> _scalars("model:\\n  ref: 'it''s'\\ntime:\\n  run:\\n    steps: 3\\n")
    {'model.ref': "it's", 'time.run.steps': '3'}
    """
    found: dict[str, str] = {}
    path: list[str] = []
    for indent, name, value in _LINE.findall(text):
        path[len(indent) // 2 :] = [name]
        if value and value != "null":
            quoted = value[0] == value[-1] == "'"
            found[".".join(path)] = value[1:-1].replace("''", "'") if quoted else value
    return found


def _planned_steps(found: Mapping[str, str]) -> int | None:
    try:
        whole, each = found["time.run.steps"], found["time.seconds_per_step"]
        return round(float(whole) / float(each))
    except (KeyError, ValueError, ArithmeticError):
        return None


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 20 else None


def _objects(path: Path, *, last: bool) -> Iterator[Plain]:
    """Yield the objects at the end of a log from its last line on, or those at its beginning."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL) if last else 0
            file.seek(start)
            texts = file.read(TAIL if last else HEAD).splitlines(keepends=True)
    except OSError:
        return
    texts = texts[1:] if start else texts
    for text in reversed(texts) if last else texts:
        if (line := line_of(text)) is not None:
            yield line


def _number(line: Plain, name: str) -> Any:
    value = line.get(name)
    return value if is_measured(value) else None
