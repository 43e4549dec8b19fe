"""Answers that are desirable or not, one a row, in the shapes that they come in.

| from            | the prompt                          | the answer               | which it is    |
|-----------------|-------------------------------------|--------------------------|----------------|
| TRL, Axolotl    | prompt: text or messages            | completion               | label          |
| Axolotl         | question or instruction             | completion, response     | label          |
| LLaMA-Factory   | instruction, input, history         | output                   | kto_tag        |
| LLaMA-Factory   | messages or conversations           | their last message       | label, kto_tag |
| ms-swift        | messages                            | their last message       | label          |

Only that answer is learned, whatever was said before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from edgetune.data.content import Chat, Completion, Rated
from edgetune.data.formats import BESIDE, FORMATS, Fields, Format, kind_of, named
from edgetune.data.pairs import refuse_no_answer
from edgetune.data.problems import RowError

LABELS = ("label", "kto_tag")
LABEL_VALUES: Mapping[str, bool] = {
    "true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False,
}  # fmt: skip
"""What says that an answer is desirable, or not, as text in small letters."""

_CHATS = ("messages", "conversations")
_PROMPTS = ("prompt", "question", "instruction")
_ANSWERS = ("completion", "response")


def label_of(value: Any) -> bool | None:
    """Return whether a label says desirable, None where it says neither.

    >>> label_of(True), label_of(0), label_of("False"), label_of(0.5)
    (True, False, False, None)
    """
    if not isinstance(value, (bool, int, float, str)):
        return None
    return LABEL_VALUES.get(str(value).strip().lower())


def _rated(row: Fields, label: str, answer: Chat | Completion) -> Rated:
    found = label_of(row[label])
    if found is None:
        value = row[label]
        shown = repr(value[:40]) if isinstance(value, str) else value
        said = shown if isinstance(value, (str, int, float)) else kind_of(value)
        raise RowError(
            f"The field {label} must be true (or 1) for a desirable answer and false (or 0) for an"
            f" undesirable one; found {said}."
        )
    return Rated(answer, found)


def _last(name: str, label: str, row: Fields) -> Rated:
    """Return the last message of a conversation as the answer to those before it."""
    chat = named(FORMATS, name).read(row)
    assert isinstance(chat, Chat)
    last = len(chat.messages) - 1
    if chat.messages[last]["role"] != "assistant" or last == 0:
        raise RowError(
            f"The {name} must end with the assistant's answer to what is before it: {label} says of"
            " that answer whether it is desirable."
        )
    if chat.messages[last].get("weight") == 0:
        raise RowError(
            f"Message {last + 1} is marked as not learned, and it is the answer that {label} is of."
            " Remove the mark or the row."
        )
    return _rated(row, label, replace(chat, given=last))


def _completion(prompt: str, answer: str, label: str, row: Fields) -> Rated:
    beside = {name: row[name] for name in BESIDE if row.get(name) is not None}
    refuse_no_answer(row[answer], answer)
    read = named(FORMATS, "prompt/completion").read
    content = read({"prompt": row[prompt], "completion": row[answer], **beside})
    assert isinstance(content, (Chat, Completion))
    return _rated(row, label, content)


def _instruction(label: str, row: Fields) -> Rated:
    content = named(FORMATS, "instruction/input/output").read(row)
    assert isinstance(content, (Chat, Completion))
    if isinstance(content, Chat):
        content = replace(content, given=len(content.messages) - 1)
    return _rated(row, label, content)


UNPAIRED_FORMATS: tuple[Format[Rated], ...] = (
    *(
        Format(f"{name} and {label}", (name, label), BESIDE, partial(_last, name, label))
        for label in LABELS
        for name in _CHATS
    ),
    *(
        Format(
            f"{prompt}, {answer} and {label}",
            (prompt, answer, label),
            BESIDE,
            partial(_completion, prompt, answer, label),
        )
        for label in LABELS
        for prompt in _PROMPTS
        for answer in _ANSWERS
    ),
    *(
        Format(
            f"instruction, output and {label}",
            ("instruction", "output", label),
            ("input", "history", *BESIDE),
            partial(_instruction, label),
        )
        for label in LABELS
    ),
)
