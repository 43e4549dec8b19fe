"""The same rows, budget and seed for several methods: a run each, in a process of its own.

What was trained already is not trained again, and what was interrupted goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from edgetune.choice import Choice
from edgetune.errors import DataError, EdgetuneError, StoppedError, UsageError
from edgetune.files import load_json, sha256_file, write_json
from edgetune.methods import METHODS, known_settings
from edgetune.report import Report
from edgetune.settings.spec import Checkpointing, Training, knobs, to_plain

RECORD: Final = "compare.json"
_LARGEST: Final = 1 << 20
_STOPPED: Final = 6
_NO_IMPROVEMENT: Final = 8
"""Exit code of a run that ended without an adapter, or with a loss that ran away."""

State = Literal["new", "unfinished", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """What a command came to: its exit code and what it printed as JSON."""

    code: int
    printed: str

    @property
    def message(self) -> str:
        """What its error said."""
        try:
            return str(json.loads(self.printed)["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return f"The process ended with exit code {self.code}."


Call = Callable[[Sequence[str]], Called]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Which methods are trained on which rows, and how; ``settings`` are flags by name."""

    folder: Path
    model: str
    data: Path
    methods: tuple[str, ...]
    settings: Mapping[str, Any]
    device: str = "auto"
    memory: int | None = None

    def __post_init__(self) -> None:
        """Refuse methods that there are not, or twice, and settings that none of them has."""
        if unknown := [name for name in self.methods if name not in METHODS]:
            known = ", ".join(METHODS)
            raise UsageError(f"There is no method {', '.join(unknown)}. There are: {known}.")
        if len(set(self.methods)) < len(self.methods):
            raise UsageError("--methods names a method twice. Name each once.")
        known_here = _COMMON.union(*map(known_settings, self.methods))
        if strange := sorted(self.settings.keys() - known_here):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in strange)
            raise UsageError(f"None of {', '.join(self.methods)} has {flags}. Leave it out.")

    def run_of(self, method: str) -> Path:
        """Return the folder of a method's run."""
        return self.folder / method

    def begin(self) -> None:
        """Note what is compared, or see that it is what was compared here before.

        Raises:
            UsageError: if the folder holds another comparison.
            DataError: if there are no rows at ``data``.
            OSError: if it cannot be written.
        """
        if not self.data.exists():
            raise DataError(f"There is no file {self.data}. Check the name and the folder.")
        record, path = self._record(), self.folder / RECORD
        if not path.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise UsageError(
                    f"{self.folder} exists and holds no comparison. Give another --output."
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
            return
        before = _read(path)
        changed = [name for name in record if before.get(name) != record[name]]
        if changed:
            raise UsageError(
                f"{self.folder} holds a comparison with other {', '.join(changed)}. Give another "
                "--output, or the same settings to go on with it."
            )

    def train(self, call: Call, say: Callable[[str], None]) -> Iterator[tuple[str, str]]:
        """Train every method that is not trained yet; yield a method and its error for each failure.

        Raises:
            StoppedError: if one was stopped; what it learned is saved.
        """
        for number, method in enumerate(self.methods, 1):
            state = state_of(self.run_of(method))
            place = f"{method} ({number} of {len(self.methods)})"
            if state == "done":
                say(f"{place}: trained already")
                continue
            say(f"{place}: {'resumes' if state == 'unfinished' else 'starts'}")
            called = call(self.arguments(method, state))
            if called.code == _STOPPED:
                raise StoppedError(
                    f"Stopped while {method} was trained; what it learned is saved. Run the same "
                    "command again to continue."
                )
            if called.code not in {0, _NO_IMPROVEMENT}:
                yield method, called.message

    def arguments(self, method: str, state: State) -> list[str]:
        """Return the command line of a method's run."""
        if state == "unfinished":
            memory = [] if self.memory is None else ["--memory", str(self.memory)]
            return ["train", "--resume", "--output", str(self.run_of(method)), *memory]
        known = {*known_settings(method), *_COMMON}
        given = {name: value for name, value in self.settings.items() if name in known}
        flags = [word for name, value in given.items() for word in _words(name, value)]
        fixed = {"model": self.model, "data": self.data, "device": self.device,
                 "memory": self.memory, "method": method, "output": self.run_of(method)}  # fmt: skip
        named = [f"--{name}={value}" for name, value in fixed.items() if value is not None]
        return ["train", "--brief", *named, *flags]

    def _record(self) -> dict[str, Any]:
        """Return what decides the results, methods aside: more of them may come later."""
        rows = sha256_file(self.data) if self.data.is_file() else str(self.data.absolute())
        settings = to_plain(dict(sorted(self.settings.items())))
        found = {"model": self.model, "rows": rows, "settings": settings, "device": self.device}
        return {**found, "memory": self.memory}


def state_of(folder: Path) -> State:
    """Return how far the run in a folder is; one that did not help is done, too."""
    if not folder.exists():
        return "new"
    try:
        status = Report.of(folder).status
    except EdgetuneError:
        return "new"  # training says what is wrong with the folder
    done = status.kind == "finished" or status.exit_code == _NO_IMPROVEMENT
    return "done" if done else "unfinished"


_COMMON: Final = frozenset(item.name for spec in (Choice, Training) for item in knobs(spec))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = load_json(path, _LARGEST)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}. Give another --output.") from error
    return found if isinstance(found, dict) else {}


def _words(name: str, value: Any) -> list[str]:
    """Return a setting as words of a command line."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, tuple):
        return [f"{flag}={','.join(map(str, value))}"]
    if isinstance(value, Checkpointing):
        offload = f":{value.offload}" if value.offload != "none" else ""
        return [f"{flag}={value.layers or 'none'}{offload}"]
    return [f"{flag}={value}"]
