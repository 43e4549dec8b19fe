"""The things that a row can hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from edgetune.data.problems import RowError
from edgetune.data.template import Message
from edgetune.data.thoughts import split_thought


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages with role and content, and what else the template is told.

    Those are the ``tools`` and the ``arguments`` of the row. The first ``given`` messages are a
    prompt: only read, whoever says them.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    given: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)

    def learned(self) -> list[int]:
        """Return which messages are the assistant's, not given, and not of weight 0."""
        return [
            index
            for index, message in enumerate(self.messages[self.given :], self.given)
            if message["role"] == "assistant" and message.get("weight") != 0
        ]

    def after(self, history: list[Message]) -> Chat:
        """Return the chat with exchanges that came before, behind its system prompt."""
        opening = self.messages[0]["role"] == "system"
        messages = [*self.messages[:opening], *history, *self.messages[opening:]]
        return replace(self, messages=messages)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield every text that the template may write, each after what a message calls its place."""
        for number, message in enumerate(self.messages, 1):
            yield f"Message {number}", message["content"]
            for name, value in message.items():
                if name not in ("role", "content"):
                    place = f"Message {number} ({name})"
                    yield from ((place, text) for text in _strings([name, value]))
        yield from (("The list of tools", text) for text in _strings(self.tools))
        yield from (("chat_template_kwargs", text) for text in _strings(self.arguments))

    def calls(self, index: int) -> list[str]:
        """Return the names of the tools that a message calls."""
        calls = self.messages[index].get("tool_calls") or []
        return [(call.get("function") or call)["name"] for call in calls]

    def is_in(self, text: str, unwritten: Collection[str] = ()) -> bool:
        """Whether a text has all that is said in it, but for space around and fields unwritten."""
        passed_over = {"role", *unwritten}
        return all(
            value.strip() in text or (name == "content" and _is_thought_and_said(message, text))
            for message in self.messages
            for name, value in message.items()
            if isinstance(value, str) and name not in passed_over
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """What is given and what is to be learned after it."""

    prompt: str
    completion: str
    system: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    between: str = ""
    """What parts the two in plain text."""

    def as_chat(self) -> Chat:
        """Return the same as an exchange between a user and the assistant.

        Raises:
            RowError: if the user would say nothing.
        """
        if not self.prompt.strip():
            raise RowError(
                "The prompt is empty, and in a chat the user must say something. Fill it in, or"
                " put the completion into a text field."
            )
        opening = [{"role": "system", "content": self.system}] if self.system.strip() else []
        turns = [
            {"role": "user", "content": self.prompt},
            {"role": "assistant", "content": self.completion},
        ]
        return Chat(opening + turns, arguments=self.arguments)

    def as_plain(self) -> tuple[str, str]:
        """Return the text that is given and the text that is learned after it."""
        given = "\n\n".join(part for part in (self.system, self.prompt) if part)
        return given + self.between, self.completion


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is learned as a whole."""

    text: str

    def as_plain(self) -> tuple[str, str]:
        """Return nothing that is given and the text, all of it learned."""
        return "", self.text


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its label, a name once :func:`edgetune.data.labels.label_name` gave it one."""

    text: str
    label: Any
    system: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    def as_completion(self) -> Completion:
        """Return the label as the answer to the text."""
        return Completion(self.text, self.label, self.system, self.arguments, between="\n")


@dataclass(frozen=True, slots=True)
class Pair:
    """A better and a worse answer, each with the prompt that they share."""

    chosen: Chat | Completion
    rejected: Chat | Completion


@dataclass(frozen=True, slots=True)
class Rated:
    """One answer to a prompt, which is desirable or not."""

    answer: Chat | Completion
    is_desirable: bool


Content = Chat | Completion | Text | Labelled
"""What becomes one document."""

RowContent = Content | Pair | Rated


def _is_thought_and_said(message: Message, text: str) -> bool:
    """Whether a text has what a message thinks and says, whatever stands between."""
    thought, said = split_thought(message)
    thinks = message["role"] == "assistant" and bool(thought)
    return thinks and thought in text and said in text


def _strings(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value, the names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
