"""Which special tokens end a turn, and which the model reads as structure in a chat.

Tokenizers do not say: their EOS is often not what ends an answer. So a short chat is rendered
and looked at, and the model's generation settings are asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from edgetune.data.problems import RowError
from edgetune.data.template import ChatTemplate
from edgetune.errors import ModelError

_ANSWER = "edgetune"
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


def longer_chats(template: ChatTemplate | None) -> list[str]:
    """Return chats in which a question follows the answer, as far as the template allows."""
    return [text for own in (template.all if template else ()) if (text := _sample(own, _MORE))]


def turn_ends(chats: list[str], added: Mapping[str, int]) -> frozenset[int]:
    """Return the added token that stands right after the answer, if one does."""
    after = [chat.partition(_ANSWER)[2].lstrip() for chat in chats]
    found = {max((text for text in added if rest.startswith(text)), key=len, default="")
             for rest in after}  # fmt: skip
    return frozenset(added[text] for text in found if text)


def listed_ends(folder: Path) -> frozenset[int]:
    """Return the end tokens that the model's generation settings list."""
    try:
        settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        ends = settings["eos_token_id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return frozenset()
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in listed if isinstance(token, int))


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
