"""The model's chat template: how a conversation becomes the text the model was trained on.

Rendering is transformers' own, in its sandbox, so that a chat reads the same here as in every
tool that serves the model.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from edgetune.data.problems import RowError

Message = dict[str, Any]
Span = tuple[int, int]

PINNED_DATE = datetime.date(2024, 7, 26)
"""What a template that asks for today's date is told, so that a run repeats on another day."""

# A template is someone else's program: on odd data it can fail in any of these ways.
_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_DATES = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PINNED = "{%- macro strftime_now(format) %}{{ pinned_dates[format] }}{% endmacro %}{{ '' }}"  # no newline
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + END + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Renders(Protocol):
    """What a masker needs of a :class:`ChatTemplate`."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: list[Any] | None = None,
    ) -> str:
        """Return a conversation as text."""

    def render_marked(
        self, messages: Sequence[Message], tools: list[Any] | None = None
    ) -> tuple[str, list[Span]]:
        """Return the text and the parts of it that are marked as the assistant's."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's source, what it is called in the receipt, and the tokens it may write."""

    source: str
    name: str
    special_tokens: Mapping[str, str]

    @cached_property
    def writes_dates(self) -> bool:
        """Whether the template asks for today's date."""
        return bool(_DATES.search(self.source))

    @cached_property
    def is_marked(self) -> bool:
        """Whether the template marks what the assistant says with ``{% generation %}``."""
        return bool(_MARKERS.search(self.source))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: list[Any] | None = None,
    ) -> str:
        """Return the conversation as text.

        Raises:
            RowError: if the template refuses the messages, with the template's own reason.
        """
        return self._render(messages, tools, add_generation_prompt)[0]

    def render_marked(
        self, messages: Sequence[Message], tools: list[Any] | None = None
    ) -> tuple[str, list[Span]]:
        """Return the text and which parts of it the template marks as the assistant's."""
        return self._render(messages, tools, False)

    def _render(
        self, messages: Sequence[Message], tools: list[Any] | None, prompt: bool
    ) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self._pinned,
                return_assistant_tokens_mask=self.is_marked,
                add_generation_prompt=prompt,
                pinned_dates=self.dates,
                **self.special_tokens,
            )
        except (TemplateError, *_FAULTS) as error:
            raise RowError(f"The chat template refuses these messages: {_reason(error)}") from error
        return texts[0], [(int(start), int(stop)) for start, stop in (spans or [[]])[0]]

    @cached_property
    def _pinned(self) -> str:
        return _PINNED + self.source if self.writes_dates else self.source

    @cached_property
    def dates(self) -> dict[str, str]:
        """What the template is told for each format in which it asks for the date."""
        formats = {match.group(2) for match in _DATES.finditer(self.source)}
        return {text: PINNED_DATE.strftime(text) for text in formats}


def default_template(end: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """Return the template for a model that has none: ChatML, with ``end`` after each turn."""
    return ChatTemplate(_CHATML.replace("END", repr(end)), f"chatml, ending {end}", special_tokens)


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
