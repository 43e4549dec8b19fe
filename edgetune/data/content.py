"""The three things that a row can hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from edgetune.data.problems import RowError
from edgetune.data.template import Message


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages with role and content, and the tools that the template is told of."""

    messages: list[Message]
    tools: list[Any] | None = None

    def learned(self) -> list[int]:
        """Return which messages are the assistant's and not given weight 0."""
        return [
            index
            for index, message in enumerate(self.messages)
            if message["role"] == "assistant" and message.get("weight") != 0
        ]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield every text that the template may write, each after what a message calls its place."""
        for number, message in enumerate(self.messages, 1):
            yield f"Message {number}", message["content"]
            for field, value in message.items():
                if field not in ("role", "content"):
                    place = f"Message {number} ({field})"
                    yield from ((place, text) for text in _strings([field, value]))
        yield from (("The list of tools", text) for text in _strings(self.tools))

    def calls(self, index: int) -> list[str]:
        """Return the names of the tools that a message calls."""
        calls = self.messages[index].get("tool_calls") or []
        return [(call.get("function") or call)["name"] for call in calls]

    def is_in(self, text: str, unwritten: Collection[str] = ()) -> bool:
        """Whether a text has all that is said in it, but for space around and fields unwritten."""
        passed_over = {"role", *unwritten}
        return all(
            value.strip() in text
            for message in self.messages
            for field, value in message.items()
            if isinstance(value, str) and field not in passed_over
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """What is given and what is to be learned after it."""

    prompt: str
    completion: str
    system: str = ""

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
        return Chat(opening + turns)

    def as_plain(self) -> tuple[str, str]:
        """Return the text that is given and the text that is learned after it."""
        return "\n\n".join(part for part in (self.system, self.prompt) if part), self.completion


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is learned as a whole."""

    text: str

    def as_plain(self) -> tuple[str, str]:
        """Return nothing that is given and the text, all of it learned."""
        return "", self.text


Content = Chat | Completion | Text


def _strings(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value, the names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
