"""The model's chat template: how a conversation becomes the text the model was trained on.

Rendering is transformers' own, in its sandbox, so that a chat reads the same here as in every
tool that serves the model.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from edgetune.data.problems import RowError
from edgetune.data.template_limits import is_risky, limited
from edgetune.errors import ModelError

Message = dict[str, Any]
Span = tuple[int, int]

PINNED_DATE = datetime.date(2024, 7, 26)
"""What a template that asks for today's date is told, so that a run repeats on another day."""

FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError,
          SyntaxError, TypeError, ValueError)  # fmt: skip
"""How a template can fail, as someone else's program, on odd data or when it is compiled."""

_PROBE = "edgetuneX"
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
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a conversation as text."""

    def render_marked(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[Span]]:
        """Return the text and the parts of it that are marked as the assistant's."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's source, what it is called in the receipt, and the tokens it may write.

    ``with_tools`` is the template for chats with tools, None if it is the same.
    """

    source: str
    name: str
    special_tokens: Mapping[str, str]
    with_tools: ChatTemplate | None = None

    @cached_property
    def writes_dates(self) -> bool:
        """Whether the template, or that for tools, asks for today's date."""
        return any(_DATES.search(template.source) for template in self.all)

    @property
    def all(self) -> tuple[ChatTemplate, ...]:
        """This template, and that for tools if it is another."""
        return (self, self.with_tools) if self.with_tools else (self,)

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
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text.

        Raises:
            RowError: if the template refuses the messages, with the template's own reason.
            ModelError: if the template does not come to an end.
        """
        return self._render(messages, tools, arguments or {}, add_generation_prompt)[0]

    def render_marked(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[Span]]:
        """Return the text and which parts of it the template marks as the assistant's."""
        return self._render(messages, tools, arguments or {}, False)

    def _render(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None,
        arguments: Mapping[str, Any],
        prompt: bool,
    ) -> tuple[str, list[Span]]:
        if tools and self.with_tools:
            return self.with_tools._render(messages, tools, arguments, prompt)
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = limited(
                lambda: render_jinja_template(
                    conversations=[self._with_arguments(messages)],
                    tools=tools,
                    chat_template=self._pinned,
                    return_assistant_tokens_mask=self.is_marked,
                    add_generation_prompt=prompt,
                    pinned_dates=self.dates,
                    **{**self.special_tokens, **arguments},
                ),
                memory=is_risky(self.source),
            )
        except (TemplateError, *FAULTS) as error:
            raise RowError(f"The chat template refuses these messages: {_reason(error)}") from error
        return texts[0], [(int(start), int(stop)) for start, stop in (spans or [[]])[0]]

    def _with_arguments(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages with the arguments of calls as the template takes them."""
        if not any(message.get("tool_calls") for message in messages) or self.takes_objects:
            return list(messages)
        return [_with_arguments_as_text(message) for message in messages]

    @cached_property
    def takes_objects(self) -> bool:
        """Whether the template writes the arguments of calls from objects, and not from their JSON."""
        asked: list[Message] = [{"role": "user", "content": "a"}]
        call = {"name": _PROBE, "arguments": {_PROBE: "x"}}
        calls = [{"id": "call00000", "type": "function", "function": call}]
        asked.append({"role": "assistant", "content": "", "tool_calls": calls})
        self.__dict__["takes_objects"] = True  # while it is found out
        as_object = self._probed(asked)
        as_text = self._probed([_with_arguments_as_text(message) for message in asked])
        is_plain = as_object is not None and f"{{'{_PROBE}'" not in as_object
        return is_plain or as_text is None or f'"{_PROBE}": "x"' not in as_text

    def _probed(self, messages: list[Message]) -> str | None:
        try:
            return self.render(messages)
        except RowError:
            return None

    @cached_property
    def _pinned(self) -> str:
        return _PINNED + self.source if self.dates else self.source

    @cached_property
    def dates(self) -> dict[str, str]:
        """What the template is told for each format in which it asks for the date."""
        formats = {match.group(2) for match in _DATES.finditer(self.source)}
        return {text: PINNED_DATE.strftime(text) for text in formats}


def _with_arguments_as_text(message: Message) -> Message:
    calls = [
        {**call, "function": {**call["function"], "arguments": _as_json(call["function"])}}
        if isinstance(call.get("function"), dict) and "arguments" in call["function"]
        else call
        for call in message.get("tool_calls") or []
    ]
    return {**message, "tool_calls": calls} if calls else message


def _as_json(function: Mapping[str, Any]) -> Any:
    found = function["arguments"]
    return json.dumps(found, ensure_ascii=False) if isinstance(found, dict) else found


def own_template(found: Any, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """Return a model's own template: a text, or texts by name, of which ``tool_use`` is for tools.

    Raises:
        ModelError: if it is neither, or no text is named ``default``.
    """
    named = found if isinstance(found, dict) else {"default": found}
    if "default" not in named:
        raise ModelError(
            f"The model has the chat templates {', '.join(map(str, named))}, but none that is named"
            " default. Add one as chat_template.jinja."
        )
    own = {name: named[name] for name in ("default", "tool_use") if name in named}
    for name, source in own.items():
        if not isinstance(source, str):
            kind = type(source).__name__
            raise ModelError(f"The model's chat template {name} is no text; found a {kind}.")
    name = "the model's own"
    if "tool_use" not in own:
        return ChatTemplate(own["default"], name, special_tokens)
    with_tools = ChatTemplate(own["tool_use"], name, special_tokens)
    name += ", tool_use for chats with tools"
    return ChatTemplate(own["default"], name, special_tokens, with_tools)


def default_template(end: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """Return the template for a model that has none: ChatML, with ``end`` after each turn."""
    return ChatTemplate(_CHATML.replace("END", repr(end)), f"chatml, ending {end}", special_tokens)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError | OverflowError):
        return "it needs more memory than a chat can be worth"
    text = str(error) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
