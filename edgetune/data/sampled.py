"""A chat template whose last answer is written as it is sampled: the prompt, then the answer.

Some templates write a chat that ends with an answer otherwise than the prompt before that answer:
without the system prompt, or without what was thought. Training must see what is there later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from re import Pattern
from typing import Any

from edgetune.data.content import Chat
from edgetune.data.openings import Write, history_end, opening
from edgetune.data.problems import RowError
from edgetune.data.template import Message, Renders, Span
from edgetune.data.thoughts import closing, split_thought, without_thought
from edgetune.data.turn_places import TurnPlaces


class SampledTemplate:
    """A template for chats that end with the assistant; the prompt is what generation starts from."""

    def __init__(self, template: Renders, ends: Pattern[str], controls: Pattern[str]) -> None:
        """Take a template, what ends a turn, and all that structures a chat."""
        self._template, self._ends, self._controls = template, ends, controls

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text.

        Raises:
            RowError: if the template refuses it, or the answer after the prompt cannot be told.
        """

        def write(messages: Sequence[Message], prompt: bool = False) -> str:
            return self._template.render(
                messages, add_generation_prompt=prompt, tools=tools, arguments=arguments
            )

        if add_generation_prompt or messages[-1]["role"] != "assistant":
            return write(messages, add_generation_prompt)
        prompt = write(messages[:-1], True)
        chat = Chat(list(messages), tools, arguments=dict(arguments or {}))
        answer = self._answer(write, chat, prompt)
        if answer is None:
            raise RowError("What follows the prompt cannot be told.")
        return prompt + answer

    def render_marked(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[Span]]:
        """Return the text; what a template marks is of the text that it would write itself."""
        return self.render(messages, tools=tools, arguments=arguments), []

    def _answer(self, write: Write, chat: Chat, prompt: str) -> str | None:
        """Return what follows the prompt when the last message is sampled, None if it is unclear."""
        messages, whole = chat.messages, write(chat.messages)
        thought, _ = split_thought(messages[-1])
        if whole.startswith(prompt) and thought in whole[len(prompt) :]:
            return whole[len(prompt) :]
        ends = closing(prompt)
        if thought and ends:
            plain = write([*messages[:-1], without_thought(messages[-1])])
            end = history_end(write, messages[:-1], prompt)
            at = None if end is None else opening(plain, prompt, end, self._controls)
            return None if at is None else f"{thought}\n{ends}\n\n{plain[at:].lstrip()}"
        if thought and thought not in whole:
            return None
        return self._without_system(write, messages) or self._found(chat, whole)

    def _without_system(self, write: Write, messages: Sequence[Message]) -> str | None:
        """Return what follows the prompt where there is no system prompt."""
        others = [message for message in messages if message["role"] not in ("system", "developer")]
        if len(others) == len(messages):
            return None
        try:
            plain, before = write(others), write(others[:-1], True)
        except RowError:
            return None
        return plain[len(before) :] if plain.startswith(before) else None

    def _found(self, chat: Chat, whole: str) -> str | None:
        """Return the last turn as it stands in the whole chat."""
        places = TurnPlaces(self._template, self._ends, self._controls)
        return whole[places.turn(chat, whole, len(chat.messages) - 1).start :]
