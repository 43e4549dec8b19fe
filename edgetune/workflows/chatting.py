"""A chat with one or several models over one base: what was said, and the next answers."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgetune.backend import GenerateOptions
from edgetune.data.problems import RowError
from edgetune.data.template import Message
from edgetune.errors import UsageError
from edgetune.files import not_new, unwritable, write_text
from edgetune.generation import Generation
from edgetune.workflows.inference import streamed
from edgetune.workflows.opened import Opened

LONGEST_ANSWER = 1024
"""Tokens of an answer, unless the user or the memory says otherwise."""


@dataclass(slots=True)
class Conversation:
    """One model's side of a chat."""

    opened: Opened
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What its answers stand under."""
        return self.opened.name

    def asked(self, question: str) -> list[Message]:
        """Return what the model would read with a further question."""
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*before, *self.messages, {"role": "user", "content": question}]

    def took(self, question: str, answer: str) -> None:
        """Remember a question and its answer."""
        self.messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]


@dataclass(slots=True)
class Chat:
    """A chat in which every model answers every question, each from its own past."""

    sides: Sequence[Conversation]
    options: GenerateOptions
    generation: Generation
    """Keeps what was read of the conversations."""
    longest: int | None = None
    """What the user allows for an answer, in tokens."""

    @classmethod
    def of(
        cls,
        opened: Sequence[Opened],
        options: GenerateOptions,
        *,
        system: str | None,
        longest: int | None,
    ) -> Chat:
        """Begin a chat.

        Raises:
            UsageError: if the model's template takes no such chat.
        """
        ends = opened[0].tokenizer.end_tokens
        chat = cls(
            sides=[Conversation(one, system) for one in opened],
            options=replace(options, end_tokens=ends),
            generation=opened[0].generation(keeps=True),
            longest=longest,
        )
        chat._prompts("Hello")
        return chat

    def ask(self, question: str) -> Generator[tuple[int, str], None, None]:
        """Yield pieces of the answers, each with the number of its side.

        Whatever was yielded until this is closed counts as the answers; a question that fails, or
        gets no answer, leaves no trace.

        Raises:
            UsageError: if the chat has become longer than the model can read.
            OutOfMemoryError: if it does not fit.
        """
        prompts = self._prompts(question)
        answers = [""] * len(self.sides)
        options = replace(self.options, max_tokens=self._longest(max(map(len, prompts))))
        asked = [(side.opened, prompt) for side, prompt in zip(self.sides, prompts, strict=True)]
        with closing(streamed(asked, options, self.generation)) as pieces:
            try:
                for number, piece in pieces:
                    answers[number] += piece
                    yield number, piece
            except GeneratorExit:
                self._took(question, answers)
                raise
        self._took(question, answers)

    @property
    def special_texts(self) -> frozenset[str]:
        """Texts of tokens that an answer may hold and that say nothing to a reader."""
        return self.sides[0].opened.tokenizer.special_texts

    def reset(self) -> None:
        """Forget what was said."""
        self.generation.forget()
        for side in self.sides:
            side.messages.clear()

    def save(self, path: Path) -> None:
        """Write the chat as a file of rows that can be trained on, one a model.

        Raises:
            UsageError: if something is there, or nothing was said.
            DiskError: if it cannot be written.
        """
        if not self.sides[0].messages:
            raise UsageError("Nothing was said yet, so there is nothing to save.")
        try:
            path = path.expanduser()
            if because := not_new(path):
                raise UsageError(f"{path} is not written: {because}. Choose another name.")
            write_text(path, "".join(map(_row, self.sides)))
        except OSError as error:
            raise unwritable("The chat", path, error, "choose another place") from error
        except RuntimeError as error:  # no such user
            raise UsageError(f"{path} is no place: {error}.") from error

    def _prompts(self, question: str) -> list[list[int]]:
        try:
            return [side.opened.prompt_tokens(side.asked(question)) for side in self.sides]
        except RowError as error:
            raise UsageError(str(error)) from error

    def _longest(self, prompt: int) -> int:
        if self.longest is not None:
            return self.longest
        return self.sides[0].opened.longest_answer(prompt, LONGEST_ANSWER)

    def _took(self, question: str, answers: Sequence[str]) -> None:
        if not any(answers):
            return
        for side, answer in zip(self.sides, answers, strict=True):
            side.took(question, answer)


def _row(side: Conversation) -> str:
    messages = side.messages
    if side.system is not None:
        messages = [{"role": "system", "content": side.system}, *messages]
    return json.dumps({"messages": messages, "model": side.label}, ensure_ascii=False) + "\n"
