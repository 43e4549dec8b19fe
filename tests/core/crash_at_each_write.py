"""Save a checkpoint in processes that die before one file operation after another.

Writes a JSON object a death: the operation, what a reader of the folder finds afterwards, and
what the run comes to when it is resumed. Usage: crash_at_each_write.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from recorded import Recorded, make_plan

from edgetune.errors import ModelError
from edgetune.events import SaveDue
from edgetune.runs import best, latest, load_checkpoint
from edgetune.runs.retention import checkpoints

WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.chmod"}
KILLED = 9
LAST = 3


def dies_at(number: int, work: Callable[[], None]) -> str | None:
    """Do work in a child that dies before its ``number``-th write; return it, None if done."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with os.fdopen(reader) as told:
            operation = told.read()
        return operation if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED else None
    left = number

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in WRITES or (event == "open" and _writes(arguments)):
            left -= 1
            if left == 0:
                os.write(writer, event.encode())
                os._exit(KILLED)

    sys.addaudithook(count)
    work()
    os._exit(0)


def _writes(arguments: tuple[object, ...]) -> bool:
    return bool(int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR))


def found_by_a_reader(run: Recorded) -> dict[str, object]:
    """Return the checkpoints and what is wrong with them."""
    folder, wrong = run.folder.checkpoints, []
    for path in checkpoints(folder):
        try:
            load_checkpoint(path, run.plan)
        except ModelError as error:
            wrong.append(str(error))
    newest, marked = latest(folder), best(folder)
    return {
        "latest": newest and newest.name,
        "best": marked and marked.name,
        "all": [path.name for path in checkpoints(folder)],
        "wrong": wrong,
    }


def main() -> None:
    """Save all steps but the last for good, then the last with a death at another place."""
    place = Path(sys.argv[1])
    plan = make_plan(place / "model", steps=LAST, eval_every=1, save_every=1, keep=1)
    number, operation = 0, ""
    while operation is not None:
        number += 1
        run = Recorded.start(plan, place / str(number))
        for event in run.events():
            if isinstance(event, SaveDue) and event.state.step == LAST:
                operation = dies_at(number, lambda: run.recorder.handle(event))  # noqa: B023
                break
            run.recorder.handle(event)
        found = {"died": operation, **found_by_a_reader(run)}
        sys.stdout.write(json.dumps({**found, "end": run.resumed().end()}) + "\n")


if __name__ == "__main__":
    main()
