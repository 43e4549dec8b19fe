"""Which characters of a rendered chat are learned: what the assistant says, and its end of turn.

A template that marks them is believed, once checked against the messages. Otherwise a turn is
what lies between the text that generation would start from and the end-of-turn token. A turn
that cannot be placed beyond doubt is refused: a wrong mask trains the wrong thing silently.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgetune.data.content import Chat
from edgetune.data.control_tokens import any_of, refuse_control_tokens
from edgetune.data.ignored_fields import IgnoredFields
from edgetune.data.problems import RowError
from edgetune.data.template import Message, Renders, Span

_STAND_IN = "edgetuneXanswer"
_ALTERED = (
    "The chat template does not write message {} ({}) as it stands, so what to learn is unclear."
)


class ChatMasker:
    """Renders chats and finds what is learned, for one template and its end-of-turn texts."""

    def __init__(self, template: Renders, ends: Iterable[str], controls: Iterable[str]) -> None:
        """Take the texts of the tokens that end a turn, and of all that structure a chat."""
        self._template, self._ignored = template, IgnoredFields(template)
        self._ends, self._controls = any_of(ends), any_of(controls)

    def spans(self, chat: Chat, *, last_only: bool = False) -> tuple[str, list[Span]]:
        """Return the rendered chat and the spans that are learned, in order.

        Raises:
            RowError: if nothing is to be learned, or what is cannot be told for certain.
        """
        refuse_control_tokens(chat, self._controls)
        learned = chat.learned()
        if not learned:
            raise RowError(_nothing(chat))
        turns = learned[-1:] if last_only else learned
        text, marked = self._template.render_marked(chat.messages, chat.tools, chat.arguments)
        if marked and len(marked) == _assistant_turns(chat):
            kept = set(turns)
            every = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
            pairs = zip(every, marked, strict=True)
            return text, [self._marked(chat, text, *pair) for pair in pairs if pair[0] in kept]
        return text, [self._turn(chat, text, index) for index in turns]

    def whole(self, chat: Chat) -> tuple[str, list[Span]]:
        """Return the rendered chat and all of it as one span."""
        refuse_control_tokens(chat, self._controls)
        text = self._render(chat, chat.messages)
        return text, [(0, len(text))]

    def unwritten(self, chat: Chat) -> frozenset[str]:
        """Return the fields of messages that the template passes over.

        Raises:
            RowError: if it passes over tools or their calls.
        """
        return self._ignored.fields(chat)

    def _marked(self, chat: Chat, text: str, index: int, span: Span) -> Span:
        start, stop = span
        if not _holds(chat, index, text[start:stop]):
            return self._turn(chat, text, index)
        inside = list(self._ends.finditer(text, start, stop))
        return start, inside[-1].end() if inside else self._closed(text, stop)

    def _turn(self, chat: Chat, text: str, index: int) -> Span:
        prompt = self._prefix(chat, text, index, add_generation_prompt=True)
        if prompt is None:
            return self._substituted(chat, text, index)
        calls, end = chat.calls(index), self._ends.search(text, prompt)
        said = text[prompt : end.start()] if end else ""
        if end and not calls and _ends_with_content(chat, index, said):
            return prompt, end.end()
        upto = self._prefix(chat, text, index + 1, add_generation_prompt=False)
        if upto is not None and _holds(chat, index, text[prompt:upto]):
            ends = self._ends.finditer(text, prompt, upto)
            holding = (end.end() for end in ends if _holds(chat, index, text[prompt : end.start()]))
            return prompt, next(holding, upto)
        if not (end and calls and _holds(chat, index, said)):
            return self._substituted(chat, text, index)
        if not self._is_written_alike(chat, text[: end.end()], index + 1):
            raise RowError(_ALTERED.format(index + 1, "assistant, with its tool calls"))
        return prompt, end.end()

    def _prefix(
        self, chat: Chat, text: str, count: int, *, add_generation_prompt: bool
    ) -> int | None:
        """Return how much of the text the first messages are, None if they are not its start."""
        try:
            prefix = self._render(chat, chat.messages[:count], add_generation_prompt)
        except RowError:
            return None
        return len(prefix) if text.startswith(prefix) else None

    def _substituted(self, chat: Chat, text: str, index: int) -> Span:
        """Find a turn by rendering the chat once more with another answer in its place."""
        head, found, tail = self._with_stand_in(chat, index).partition(_STAND_IN)
        start, stop = len(head), len(text) - len(tail)
        answer = text[start:stop].strip()
        same = bool(found) and start <= stop and text.startswith(head) and text.endswith(tail)
        closed = self._closed(text, stop)
        if not same or not answer or answer not in chat.messages[index]["content"]:
            raise RowError(_ALTERED.format(index + 1, "assistant"))
        if not _holds_calls(chat, index, text[start:closed]):
            raise RowError(_ALTERED.format(index + 1, "assistant, with its tool calls"))
        return start, closed

    def _is_written_alike(self, chat: Chat, start: str, index: int) -> bool:
        """Whether the text still starts so when a message, if there is one, says something else."""
        try:
            return index == len(chat.messages) or self._with_stand_in(chat, index).startswith(start)
        except RowError:
            return False

    def _with_stand_in(self, chat: Chat, index: int) -> str:
        messages = list(chat.messages)
        messages[index] = {**messages[index], "content": _STAND_IN}
        return self._render(chat, messages)

    def _render(self, chat: Chat, messages: list[Message], prompt: bool = False) -> str:
        """Return messages as text, with the tools and the arguments of a chat."""
        return self._template.render(
            messages, add_generation_prompt=prompt, tools=chat.tools, arguments=chat.arguments
        )

    def _closed(self, text: str, stop: int) -> int:
        """Return where a turn ends that stops at ``stop``, its end-of-turn token included."""
        blank = stop + len(text[stop:]) - len(text[stop:].lstrip())
        end = self._ends.match(text, blank)
        return end.end() if end else stop


def _nothing(chat: Chat) -> str:
    if _assistant_turns(chat):
        return (
            "All that the assistant says is marked to be only read, so there is nothing to learn."
        )
    return "No message is the assistant's, so there is nothing to learn."


def _assistant_turns(chat: Chat) -> int:
    return sum(message["role"] == "assistant" for message in chat.messages)


def _content(chat: Chat, index: int) -> str:
    return str(chat.messages[index]["content"]).strip()


def _ends_with_content(chat: Chat, index: int, part: str) -> bool:
    return _said(chat, index, part).rstrip().endswith(_content(chat, index))


def _holds(chat: Chat, index: int, part: str) -> bool:
    said = _said(chat, index, part)
    return _content(chat, index) in said and _holds_calls(chat, index, part)


def _holds_calls(chat: Chat, index: int, part: str) -> bool:
    calls = chat.calls(index)
    said = _said(chat, index, part).replace(_content(chat, index), "", 1) if calls else ""
    return all(said.count(name) >= calls.count(name) for name in calls)


def _said(chat: Chat, index: int, part: str) -> str:
    """Return a part of the text without what is thought: it may hold the same words."""
    fields = chat.messages[index].items()
    beside = [value for field, value in fields if field not in ("role", "content")]
    for text in dict.fromkeys(value.strip() for value in beside if isinstance(value, str)):
        part = part.replace(text, "", 1)
    return part
