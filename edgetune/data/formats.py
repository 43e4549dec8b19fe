"""The shapes that rows come in, told apart by their fields and made into one of three things.

| name                      | fields                           | becomes    |
|---------------------------|----------------------------------|------------|
| messages                  | messages: role, content          | Chat       |
| conversations             | conversations: from, value       | Chat       |
| prompt/completion         | prompt, completion               | Completion |
| instruction/input/output  | instruction, output (and input)  | Completion |
| text                      | text                             | Text       |

A row with the fields of several is the first of them that has those of ``--fields``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgetune.data.content import Chat, Completion, Content, Text
from edgetune.data.messages import read_messages, read_tools
from edgetune.data.problems import RowError

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A shape of row: its name, the fields it needs and those it also reads."""

    name: str
    needs: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Fields], Content]

    @cached_property
    def fields(self) -> frozenset[str]:
        """All fields that are read."""
        return frozenset((*self.needs, *self.optional))

    def matches(self, row: Fields) -> bool:
        """Whether the row has the fields of this format."""
        return all(row.get(name) is not None for name in self.needs)

    def refuse_null(self, row: Fields) -> None:
        """Refuse a row that has all fields of this format, but null in one.

        Raises:
            RowError: naming the field.
        """
        nulls = [name for name in self.needs if row.get(name) is None]
        if nulls and all(name in row for name in self.needs):
            raise RowError(f"The field {nulls[0]} is null. Fill it in or remove the row.")


def detect(row: Fields, asked: Set[str] = frozenset()) -> Format:
    """Return the format of a row, one that has the ``asked`` fields if there is such a one.

    Raises:
        RowError: if it has the fields of none.
    """
    matching = [format_ for format_ in FORMATS if format_.matches(row)]
    if matching:
        return next((format_ for format_ in matching if asked <= format_.fields), matching[0])
    for format_ in FORMATS:
        format_.refuse_null(row)
    known = "; ".join(" and ".join(format_.needs) for format_ in FORMATS)
    names = sorted(f"{name} (null)" if row[name] is None else str(name) for name in row)
    found = ", ".join(names[:12]) or "none"
    raise RowError(f"Found the fields {found}. A row needs one of: {known}.")


def format_named(name: str) -> Format:
    """Return the format of a name that ``detect`` gave."""
    return next(format_ for format_ in FORMATS if format_.name == name)


def _messages(row: Fields) -> Content:
    return Chat(read_messages(row["messages"]), read_tools(row.get("tools")))


def _conversations(row: Fields) -> Content:
    return Chat(read_messages(row["conversations"]), read_tools(row.get("tools")))


def _prompt(row: Fields) -> Content:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        if not prompt or not completion:
            empty = "completion" if prompt else "prompt"
            raise RowError(f"The {empty} has no messages. Fill it in or remove the row.")
        return Chat(read_messages(prompt + completion), read_tools(row.get("tools")))
    if row.get("tools"):
        raise RowError("Tools need a prompt and a completion that are lists of messages.")
    return Completion(_string(row, "prompt", empty=True), _string(row, "completion"))


def _instruction(row: Fields) -> Content:
    parts = [_string(row, "instruction"), _string(row, "input", empty=True)]
    prompt = "\n\n".join(part for part in parts if part.strip())
    system = _string(row, "system", empty=True)
    return Completion(prompt, _string(row, "output"), system)


def _text(row: Fields) -> Content:
    return Text(_string(row, "text"))


def _string(row: Fields, name: str, *, empty: bool = False) -> str:
    value = row.get(name)
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise RowError(f"The field {name} must be text; found {kind_of(value)}.")
    if not empty and not value.strip():
        raise RowError(f"The field {name} is empty. Fill it in or remove the row.")
    return value


def kind_of(value: object) -> str:
    """Return what a message calls a value in place of a row or a field."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false",
             int: "a number", float: "a number", type(None): "null"}  # fmt: skip
    return kinds.get(type(value), type(value).__name__)


FORMATS = (
    Format("messages", ("messages",), ("tools",), _messages),
    Format("conversations", ("conversations",), ("tools",), _conversations),
    Format("prompt/completion", ("prompt", "completion"), ("tools",), _prompt),
    Format(
        "instruction/input/output", ("instruction", "output"), ("input", "system"), _instruction
    ),
    Format("text", ("text",), (), _text),
)
