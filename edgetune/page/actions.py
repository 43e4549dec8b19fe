"""What the page does with runs: start, pause, stop, resume, export; with the command line's commands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgetune.errors import UsageError
from edgetune.files import not_new
from edgetune.page.jobs import Job, Jobs, ask_to_stop, newest, stop_at_once
from edgetune.page.listing import Listed, Listing
from edgetune.runs import RunFolder
from edgetune.runs.lock import began

_NAME: Final = re.compile(r"[^/\\\0-\x1f.][^/\\\0-\x1f]{0,99}")


@dataclass(slots=True)
class Actions:
    """Acts on the runs of a folder."""

    listing: Listing
    jobs: Jobs
    _asked: dict[str, int] = field(default_factory=dict)
    """Processes that were asked to stop, by run."""

    def is_stopping(self, run: Listed) -> bool:
        """Whether a run was asked to stop and has not yet."""
        return run.holder is not None and self._asked.get(run.name) == run.holder

    def start(self, name: str, given: Mapping[str, str], flags: Sequence[str]) -> Job:
        """Start a training; ``given`` are model, data, from, device and memory.

        Raises:
            UsageError: if the name is taken or none.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"--output: {name[:40]!r} is no name for a run. Take letters, digits, - and _."
            )
        path = self.listing.folder / name
        RunFolder.check(path)
        return self.jobs.start("train", name, train_command(path, given, flags))

    def resume(self, name: str) -> Job:
        """Go on with a run that was stopped.

        Raises:
            UsageError: if a process is at work in it, or it has come to its end.
        """
        run = self.listing.run(name)
        if run.holder is not None:
            raise UsageError(f"{name} is training already.")
        if run.state == "finished":
            raise UsageError(f"{name} has finished; there is nothing to go on with.")
        return self.jobs.start(
            "train", run.name, ["train", "--resume", f"--output={run.path}", "--json"]
        )

    def pause(self, name: str) -> None:
        """Let a training stop after its step and save."""
        number = self._at_work(name)
        if self._asked.get(name) != number:  # a second one would stop it at once
            self._asked[name] = number
            ask_to_stop(number)

    def stop(self, name: str) -> None:
        """Let a training stop at once; it goes on from its newest checkpoint."""
        number = self._at_work(name)
        self._asked[name] = number
        stop_at_once(number, began(number))

    def export(self, name: str, to: str, output: str, quantize: str) -> Job:
        """Write a run as files that other tools load.

        Raises:
            UsageError: if there is no such format, or the place is taken.
        """
        from edgetune.exporters import EXPORTERS  # brings numpy and all adapters

        run = self.listing.run(name)
        if to not in EXPORTERS:
            raise UsageError(f"--to takes {', '.join(EXPORTERS)}; found {to[:40]!r}.")
        if not output:
            raise UsageError("--output: where to? Give a new folder, or a .gguf file.")
        if because := not_new(Path(output).expanduser()):
            raise UsageError(f"--output {output}: {because}. Choose another place.")
        place = Path(output).expanduser().absolute()
        arguments = ["export", str(run.path), f"--to={to}", f"--output={place}", "--json"]
        if quantize:
            arguments.append(f"--quantize={quantize}")
        return self.jobs.start("export", run.name, arguments)

    def _at_work(self, name: str) -> int:
        """Return the process of a training: the one in its folder, or one that is about to be.

        Raises:
            UsageError: if there is none.
        """
        if (self.listing.folder / name).is_dir():
            run = self.listing.run(name)
            if run.holder is not None:
                return run.holder
        job = newest(self.jobs.of(name), "train")
        if job is None or not job.alive:
            raise UsageError(f"{name} is not training.")
        return job.pid


def train_command(path: Path, given: Mapping[str, str], flags: Sequence[str]) -> list[str]:
    """Return the arguments of a training into ``path``."""
    named = [f"--{name}={value}" for name, value in given.items() if value]
    return ["train", *named, *flags, f"--output={path}", "--json"]
