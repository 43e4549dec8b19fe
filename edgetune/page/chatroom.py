"""A child of the page that holds a run's model: base and tuned model answer side by side.

``python -m edgetune.page.chatroom``. Its memory is that of the run's plan, which the backend keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from threading import Event
from typing import Final

from edgetune.backend import GenerateOptions
from edgetune.device import read_device
from edgetune.errors import OutOfMemoryError
from edgetune.escapes import without
from edgetune.page.answering import Plain, answer_for_ever
from edgetune.settings.parse import checked
from edgetune.units import format_bytes
from edgetune.workflows.chatting import Chat
from edgetune.workflows.over import Over
from edgetune.workflows.references import open_references, read_reference

BASE: Final = "base"


class Room:
    """One chat at a time; another run's takes its place."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._stop = Event()
        self._run = ""
        self._chat: Chat | None = None

    def told(self, message: Plain) -> None:
        """Stop the answer that is given now."""
        if message.get("do") == "stop":
            self._stop.set()

    def answer(self, request: Plain) -> Iterable[Plain]:
        """Answer a question, or forget what was said."""
        self._stop.clear()
        fresh = request["run"] != self._run or self._chat is None
        if request["do"] == "reset":
            if self._chat is not None:
                self._chat.reset()
            return
        chat = self._open(request["run"])
        yield {"sides": [side.label for side in chat.sides], "fresh": fresh}
        chat.options = replace(
            chat.options, temperature=checked(float, request["temperature"], "temperature")
        )
        chat.longest = request.get("longest")
        yield from self._pieces(chat, request["question"])

    def _pieces(self, chat: Chat, question: str) -> Iterator[Plain]:
        with closing(chat.ask(question)) as pieces:
            for side, text in pieces:
                if shown := without(text, chat.special_texts):
                    yield {"side": side, "text": shown}
                if self._stop.is_set():
                    yield {"stopped": True}
                    return

    def _open(self, run: str) -> Chat:
        if self._chat is not None and run == self._run:
            return self._chat
        self._close()
        _require_memory(run)
        (tuned,) = open_references([run])
        sides = [replace(tuned.base(), name=BASE), replace(tuned, name="tuned")]
        self._chat = Chat.of(sides, GenerateOptions(), system=None, longest=None)
        self._run = run
        return self._chat

    def _close(self) -> None:
        if self._chat is not None:
            self._chat.reset()
            self._chat.sides[0].opened.session.close()
        self._chat, self._run = None, ""


def _require_memory(run: str) -> None:
    """Refuse to open a model beside a training or other programs that leave no memory for it."""
    plan = read_reference(run, Over()).plan
    if plan is None:
        return
    needed, free = plan.memory.phases.evaluate, read_device(plan.device.kind).free_bytes
    if free < needed:
        raise OutOfMemoryError(
            f"This chat needs {format_bytes(needed)}, and {format_bytes(free)} are free. Wait for "
            "trainings at work, or close other programs."
        )


if __name__ == "__main__":
    room = Room()
    answer_for_ever(room.answer, room.told)
