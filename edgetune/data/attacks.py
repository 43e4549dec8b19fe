"""What people do to a text by mistake, or to mislead a model: letters and words changed a little.

Words that have no letters alone, or few of them, stay as they are: numbers decide answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from edgetune.data.content import Chat, Completion, Content, Labelled
from edgetune.data.problems import RowError
from edgetune.data.template_arguments import FIELD

Words = list[str]
Change = Callable[[Words, Random], None]
"""Changes one place of a text, given as its words."""

SHARE = 0.15
"""Of the words of a text, how many places are changed; one at least."""

_LEAST = 4
"""Letters of a word that is changed: shorter ones become other words."""

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_FILLERS = ("well", "um", "so", "like", "actually", "you know", "I mean", "sort of")


def _swap_letters(words: Words, rng: Random) -> None:
    def swapped(word: str) -> str:
        at = rng.randrange(1, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    _on_a_word(words, rng, swapped)


def _drop_a_letter(words: Words, rng: Random) -> None:
    def dropped(word: str) -> str:
        at = rng.randrange(1, len(word) - 1)
        return word[:at] + word[at + 1 :]

    _on_a_word(words, rng, dropped)


def _mistype_a_letter(words: Words, rng: Random) -> None:
    def mistyped(word: str) -> str:
        at = rng.randrange(1, len(word) - 1)
        row = next((keys for keys in _KEYS if word[at].lower() in keys), None)
        if row is None:
            return word
        place = row.index(word[at].lower())
        near = row[max(0, place - 1) : place + 2].replace(word[at].lower(), "")
        return word[:at] + rng.choice(near) + word[at + 1 :]

    _on_a_word(words, rng, mistyped)


def _on_a_word(words: Words, rng: Random, change: Callable[[str], str]) -> None:
    """Change a word that has letters enough; punctuation around it stays."""
    places = [place for place, word in enumerate(words) if _letters(word) is not None]
    if places:
        place = rng.choice(places)
        found = _letters(words[place])
        assert found is not None
        start, stop = found.span()
        word = words[place]
        words[place] = word[:start] + change(word[start:stop]) + word[stop:]


def _letters(word: str) -> re.Match[str] | None:
    if any(letter.isdigit() for letter in word):
        return None
    return re.search(rf"[^\W\d_]{{{_LEAST},}}", word)


def _swap_words(words: Words, rng: Random) -> None:
    if len(words) > 1:
        at = rng.randrange(len(words) - 1)
        words[at], words[at + 1] = words[at + 1], words[at]


def _fill_in(words: Words, rng: Random) -> None:
    words.insert(rng.randrange(len(words) + 1), rng.choice(_FILLERS))


ATTACKS: Mapping[str, Change] = {
    "letters swapped": _swap_letters,
    "letters dropped": _drop_a_letter,
    "letters mistyped": _mistype_a_letter,
    "words swapped": _swap_words,
    "fillers": _fill_in,
}


def attacked_text(text: str, attack: str, rng: Random) -> str:
    """Return a text with some of its places changed.

    >>> attacked_text("Turn on the lamp in the kitchen.", "letters swapped", Random(0))
    'Turn on the lmap in the kitchen.'
    >>> attacked_text("Turn on the lamp in the kitchen.", "fillers", Random(3))
    'Turn on the so lamp in the kitchen.'
    """
    words = text.split(" ")
    for _ in range(max(1, round(SHARE * len(words)))):
        ATTACKS[attack](words, rng)
    return " ".join(words)


def attacked_row(content: Content, change: Callable[[str], str]) -> dict[str, Any]:
    """Return a row that says what another does, but for what the user says last.

    Raises:
        RowError: if nobody asks anything in it.
    """
    match content:
        case Completion():
            row = {"prompt": change(content.prompt), "completion": content.completion}
        case Labelled():
            row = {"text": change(content.text), "label": content.label}
        case Chat():
            return _attacked_chat(content, change)
        case _:
            raise RowError("A row of plain text has no prompt that could be changed.")
    row |= {"system": content.system} if content.system else {}
    return row | ({FIELD: content.arguments} if content.arguments else {})


def _attacked_chat(chat: Chat, change: Callable[[str], str]) -> dict[str, Any]:
    asked = [i for i, one in enumerate(chat.messages) if one["role"] == "user"]
    if not asked or not isinstance(chat.messages[asked[-1]]["content"], str):
        raise RowError("A chat without a text by the user has no prompt that could be changed.")
    messages = list(chat.messages)
    messages[asked[-1]] = {**messages[asked[-1]], "content": change(messages[asked[-1]]["content"])}
    chat = replace(chat, messages=messages)
    row: dict[str, Any] = {"messages": messages}
    if chat.given:
        row = {"prompt": messages[: chat.given], "completion": messages[chat.given :]}
    row |= {"tools": chat.tools} if chat.tools else {}
    return row | ({FIELD: chat.arguments} if chat.arguments else {})
