"""What clients of OpenAI's API ask for, read strictly: what is not done is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgetune.backend import GenerateOptions
from edgetune.data.template import Message
from edgetune.errors import EdgetuneError, UsageError
from edgetune.escapes import short
from edgetune.workflows.chatting import LONGEST_ANSWER

_SAYS_NOTHING: Final[tuple[Any, ...]] = (None, False, 0, "", [], {})
_HARMLESS: Final = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "parallel_tool_calls",
    }
)  # fmt: skip
"""Fields that say nothing about the answer."""
_SAME: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,), "best_of": (1,), "response_format": ({"type": "text"},), "tool_choice": ("none",),
    "modalities": (["text"],), "top_k": (-1,), "repetition_penalty": (1, 1.0),
}  # fmt: skip
"""Values that ask for what is done anyway."""
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_READ: Final = frozenset(
    {
        "model", "messages", "prompt", "stream", "stream_options", "max_tokens",
        "max_completion_tokens", "temperature", "top_p", "seed", "stop",
    }
)  # fmt: skip
_MOST_STOPS: Final = 16


class BadRequestError(EdgetuneError):
    """A request that cannot be answered; ``param`` is the field that is the reason."""

    kind = "request"

    def __init__(self, message: str, param: str | None = None) -> None:
        """Take the message."""
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for answers to prompts; ``longest`` is what it allows, None for the server's."""

    model: str
    prompts: tuple[str | list[Message], ...]
    options: GenerateOptions
    longest: int | None
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    """Whether a streamed answer ends with the numbers of tokens."""


def read_request(body: object, *, chat: bool) -> Request:
    """Return what the body of a request asks for.

    Raises:
        BadRequestError: naming a field that is missing, wrong or not supported.
    """
    if not isinstance(body, dict):
        raise BadRequestError("The body must be a JSON object.")
    other = "prompt" if chat else "messages"
    for name, value in body.items():
        known = name in _READ and name != other
        if not known and name not in _HARMLESS and not _says_nothing(name, value):
            raise BadRequestError(f"{name} is {short(value)}: not supported.", name)
    longest = _longest(body)
    return Request(
        model=_text(body, "model"),
        prompts=(_messages(body.get("messages")),) if chat else _prompts(body.get("prompt")),
        options=_options(body, longest),
        longest=longest,
        stops=_stops(body.get("stop")),
        stream=_flag(body, "stream"),
        usage=_flag(body.get("stream_options") or {}, "include_usage"),
    )


def _says_nothing(name: str, value: object) -> bool:
    return value in _SAYS_NOTHING or value in _SAME.get(name, ())


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequestError(f"{name} must be a text; found {short(value)}.", name)
    return value


def _flag(body: object, name: str) -> bool:
    value = body.get(name) if isinstance(body, dict) else body
    if value not in (None, True, False):
        raise BadRequestError(f"{name} must be true or false; found {short(value)}.", name)
    return bool(value)


def _longest(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadRequestError(f"{name} must be a number from 1 on; found {short(value)}.", name)
        return value
    return None


def _options(body: Mapping[str, Any], longest: int | None) -> GenerateOptions:
    given: dict[str, Any] = {}
    for name, kinds in (("temperature", (int, float)), ("top_p", (int, float)), ("seed", (int,))):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise BadRequestError(f"{name} must be a number; found {short(value)}.", name)
        given[name] = value
    try:
        return GenerateOptions(max_tokens=longest or LONGEST_ANSWER, **given)
    except UsageError as error:
        raise BadRequestError(str(error).replace("--top-p", "top_p").replace("--", "")) from error


def _stops(value: object) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if len(listed) > _MOST_STOPS or not all(isinstance(x, str) and x for x in listed):
        raise BadRequestError(
            f"stop must be a text or up to {_MOST_STOPS} texts; found {short(value)}.", "stop"
        )
    return tuple(listed)


def _prompts(value: object) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(text, str) for text in listed):
        raise BadRequestError(f"prompt must be a text or texts; found {short(value)}.", "prompt")
    return tuple(listed)


def _messages(value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise BadRequestError(
            f"messages must be a list of messages; found {short(value)}.", "messages"
        )
    return [_message(message) for message in value]


def _message(value: object) -> Message:
    role = value.get("role") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(role, str) or role not in _ROLES:
        raise BadRequestError(
            f"A message must have one of the roles {', '.join(_ROLES)}; found {short(value)}.",
            "messages",
        )
    for name in value.keys() - {"role", "content", "name"}:
        if not _says_nothing(name, value[name]):
            raise BadRequestError(f"A message has {name}: not supported.", "messages")
    return {"role": _ROLES[role], "content": _content(value.get("content"))}


def _content(value: object) -> str:
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else []
    texts = [part.get("text") for part in parts if _is_text(part)]
    if not parts or len(texts) < len(parts):
        raise BadRequestError(
            f"The content of a message must be a text, or parts of text; found {short(value)}.",
            "messages",
        )
    return "".join(str(text) for text in texts)


def _is_text(part: object) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type") in ("text", "input_text")
        and isinstance(part.get("text"), str)
    )


def names_of(given: Sequence[str]) -> list[str]:
    """Return a short name for each reference: its last part where that is only one's.

    >>> names_of(["runs/home", "runs/other", "more/other", "tiny"])
    ['home', 'runs/other', 'more/other', 'tiny']
    """
    last = [name.rstrip("/").rpartition("/")[2] for name in given]
    return [
        short if short and last.count(short) == 1 else name
        for name, short in zip(given, last, strict=True)
    ]
