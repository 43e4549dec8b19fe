"""What the assistant thinks before it answers, in a field of its own or inline, and how it is marked."""

from __future__ import annotations

import re

from edgetune.data.template import Message

FIELDS = ("reasoning_content", "reasoning", "thinking")
"""A message has a thought in one of these; transformers takes any for another."""

_MARKS = {
    "<think>": "</think>", "<thinking>": "</thinking>", "<thought>": "</thought>",
    "[THINK]": "[/THINK]", "<seed:think>": "</seed:think>",
    "<|START_THINKING|>": "<|END_THINKING|>", "<|inner_prefix|>": "<|inner_suffix|>",
}  # fmt: skip
_OPENED = re.compile(f"({'|'.join(map(re.escape, _MARKS))})\\s*$")
_INLINE = re.compile(
    f"^\\s*(?:{'|'.join(map(re.escape, _MARKS))})?(.*?)({'|'.join(map(re.escape, _MARKS.values()))})",
    re.DOTALL,
)
_ANY = re.compile("|".join(map(re.escape, (*_MARKS, *_MARKS.values()))))


def has_mark(content: str) -> bool:
    """Whether a text has anything in it that begins or ends a thought."""
    return ("<" in content or "[" in content) and bool(_ANY.search(content))


def split_thought(message: Message) -> tuple[str, str]:
    """Return what a message thinks and what it says, without the space around.

    >>> split_thought({"content": "<think>\\nwell\\n</think>\\n\\nyes"})
    ('well', 'yes')
    """
    content = str(message["content"])
    field = next((str(message[name]) for name in FIELDS if message.get(name)), "").strip()
    inline = _INLINE.match(content)
    if inline is None:
        return field, content.strip()
    said = content[inline.end() :].strip()
    return field or inline.group(1).strip(), said


def without_thought(message: Message) -> Message:
    """Return a message that only says something."""
    kept = {name: value for name, value in message.items() if name not in FIELDS}
    return {**kept, "content": split_thought(message)[1]}


def closing(prompt: str) -> str | None:
    """Return what ends the thought that a prompt has begun, None if it has begun none."""
    opened = _OPENED.search(prompt)
    return _MARKS[opened.group(1)] if opened else None
