"""Text that others wrote, made safe to print: names of files, tensors and models, rows, messages.

>>> plain("a\\x1b[2Jb\\u202ec"), one_line("a\\nb"), shell_word("my run"), shell_word("a\\nb")
('a\\\\x1b[2Jb\\\\u202ec', 'a\\\\nb', "'my run'", "$'a\\\\nb'")
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator
from reprlib import Repr
from typing import Final

_STEERING: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of what follows
    "\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # unseen
    "\ud800-\udfff]"  # bytes of a file name that are not UTF-8
)
_LINE: Final = 80
_LINES: Final = re.compile(f"{_STEERING.pattern[:-1]}\t\n]")
_SHORT: Final = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 3, 60, 40, 60


def short(value: object) -> str:
    """Return what a file held as it would be written in Python, in about a line."""
    text = _SHORT.repr(value)
    return text if len(text) <= _LINE else f"{text[: _LINE - 3]}..."


def plain(text: str) -> str:
    """Return a text with escapes for all that would steer a terminal or cannot be seen."""
    return _STEERING.sub(_escaped, text)


def one_line(text: str) -> str:
    """Return a name with escapes as in :func:`plain`, tabs and line ends included."""
    return _LINES.sub(_escaped, text)


def without(text: str, parts: Collection[str]) -> str:
    """Return a text without some parts, such as a model's special tokens.

    >>> without("<|im_start|>user\\nHello<|im_end|>", {"<|im_start|>", "<|im_end|>"})
    'user\\nHello'
    """
    return "".join(piece for piece, is_part in marked(text, parts) if not is_part)


def marked(text: str, parts: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a text in order, each with whether it is one of some parts.

    >>> list(marked("a<s>b", ["<s>"]))
    [('a', False), ('<s>', True), ('b', False)]
    """
    longest_first = sorted(filter(None, parts), key=len, reverse=True)
    pattern = f"({'|'.join(map(re.escape, longest_first))})"
    pieces = re.split(pattern, text) if longest_first else [text]
    for number, piece in enumerate(pieces):
        if piece:
            yield piece, number % 2 == 1


def half_character(text: str) -> str | None:
    """Return what to say of a text that cannot be written as UTF-8; None if it can.

    >>> half_character("caf\\udce9"), half_character("caf\\xe9")
    ("The text holds half a character ('\\\\udce9' at character 4). Remove it.", None)
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"{text[error.start]!a} at character {error.start + 1}"
        return f"The text holds half a character ({found}). Remove it."
    return None


def shell_word(text: str) -> str:
    """Return a text as a POSIX shell takes it as one word; ``$'…'`` where it cannot be shown."""
    if one_line(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(_in_dollar_quotes(char) for char in text) + "'"


def _escaped(match: re.Match[str]) -> str:
    return ascii(match.group())[1:-1]


def _in_dollar_quotes(char: str) -> str:
    if 0xDC80 <= ord(char) <= 0xDCFF:  # a byte of a file name
        return f"\\x{ord(char) - 0xDC00:02x}"
    return f"\\{char}" if char in "\\'" else one_line(char)
