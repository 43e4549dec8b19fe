"""Which special tokens end a turn, and which the model reads as structure in a chat.

Tokenizers do not say: their EOS is often not what ends an answer. So a short chat is rendered
and looked at, and the model's generation settings are asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os.path import commonprefix
from pathlib import Path

from edgetune.data.control_tokens import any_of
from edgetune.data.problems import RowError
from edgetune.data.template import ChatTemplate
from edgetune.errors import ModelError
from edgetune.files import load_json

_ANSWER = "edgetune"
_LARGEST = 1 << 24  # bytes of a settings file
# How templates write structure that is no token of its own, such as [INST] and <<SYS>>.
_MARKUP = re.compile(r"<\|[^<>|\s]+\|>|<</?[A-Z]+>>|\[/?[A-Z_]+\]")
_SYSTEM = [{"role": "system", "content": "a"}]
_CHAT = [{"role": "user", "content": "b"}, {"role": "assistant", "content": _ANSWER}]
_MORE = [*_CHAT, {"role": "user", "content": "c"}]


def sample_chats(template: ChatTemplate | None) -> list[str]:
    """Return short chats, without and with a system message, as far as the template allows.

    Raises:
        ModelError: if the template is not even a template.
    """
    templates = template.all if template else ()
    chats = (_CHAT, _SYSTEM + _CHAT)
    return [text for own in templates for chat in chats if (text := _sample(own, chat))]


def turn_ends(
    template: ChatTemplate | None, added: Mapping[str, int], known: frozenset[int]
) -> frozenset[int]:
    """Return the added tokens that end an answer, last or before another question.

    Of several that close a turn it is the first that is ``known`` to end sequences, else the last.
    """
    found = (_turn_end(own, added, known) for own in (template.all if template else ()))
    return frozenset(token for token in found if token is not None)


def end_between(template: ChatTemplate | None, added: Mapping[str, int]) -> int | None:
    """Return the added token that stands behind an answer only where a question follows."""
    texts = any_of(added)
    for own in template.all if template else ():
        if (found := texts.match(_rest(own, _MORE))) and not texts.match(_rest(own, _CHAT)):
            return added[found.group()]
    return None


def _turn_end(
    template: ChatTemplate, added: Mapping[str, int], known: frozenset[int]
) -> int | None:
    texts = any_of(added)
    alone, before = _rest(template, _CHAT), _rest(template, _MORE)
    alone = alone or _rest(template, _SYSTEM + _CHAT)
    first = texts.match(alone)
    if first is None:
        return None
    found = [added[each.group()] for each in texts.finditer(_shared(alone, before))]
    closing = found or [added[first.group()]]
    return next((token for token in closing if token in known), closing[-1])


def _shared(one: str, other: str) -> str:
    return commonprefix([one, other])  # noqa: RUF071 (no paths)


def _rest(template: ChatTemplate, chat: list[dict[str, str]]) -> str:
    """Return what a template writes after an answer, without the space before it."""
    return _sample(template, chat).partition(_ANSWER)[2].lstrip()


def listed_ends(folder: Path) -> frozenset[int]:
    """Return the end tokens that the model's generation settings list, or else its config."""
    return _ends_in(folder / "generation_config.json") or _ends_in(folder / "config.json")


def _ends_in(file: Path) -> frozenset[int]:
    """Return the end tokens of a file; a wrapper's config has them with those of its decoder."""
    try:
        settings = load_json(file, _LARGEST)
        inner = settings.get("text_config")
        tables = (settings, inner if isinstance(inner, dict) else {})
        found = (table.get("eos_token_id") for table in tables)
        ends: object = next((each for each in found if each is not None), [])
    except (OSError, ValueError, AttributeError):
        return frozenset()
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(x for x in listed if isinstance(x, int) and not isinstance(x, bool) and x >= 0)


def markup(chats: list[str]) -> frozenset[str]:
    """Return the texts in sample chats that read as structure although they may be no tokens."""
    return frozenset(text for chat in chats for text in _MARKUP.findall(chat))


def _sample(template: ChatTemplate, chat: list[dict[str, str]]) -> str:
    from jinja2 import TemplateSyntaxError

    try:
        return template.render(chat)
    except RowError as error:
        if isinstance(error.__cause__, (TemplateSyntaxError, SyntaxError)):
            raise ModelError(f"The model's chat template is broken: {error.__cause__}") from error
        return ""
