"""The shapes that rows come in, told apart by their fields and made into what a row can hold.

| name                      | fields                           | becomes            |
|---------------------------|----------------------------------|--------------------|
| messages                  | messages: role, content          | Chat               |
| conversations             | conversations: from, value       | Chat               |
| prompt/completion         | prompt, completion               | Completion or Chat |
| instruction/input/output  | instruction, output (and input)  | Completion or Chat |
| text/label                | text, label                      | Labelled           |
| text                      | text                             | Text               |

A row with the fields of several is the first of them that has those of ``--fields``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from edgetune.data.content import Chat, Completion, Content, Labelled, Text
from edgetune.data.field_names import as_option, proposed_fields
from edgetune.data.listed_text import as_listed
from edgetune.data.messages import read_messages
from edgetune.data.problems import RowError
from edgetune.data.template import Message
from edgetune.data.template_arguments import FIELD, read_template_arguments
from edgetune.data.tool_calls import read_tools

C_co = TypeVar("C_co", covariant=True)
Fields = Mapping[str, Any]
BESIDE = ("system", "system_prompt", "tools", "functions", FIELD)


@dataclass(frozen=True)
class Format(Generic[C_co]):
    """A shape of row: its name, the fields it needs and those it also reads."""

    name: str
    needs: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Fields], C_co]

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


def detect(row: Fields, asked: Set[str] = frozenset()) -> Format[Content]:
    """Return the format of a row, one that has the ``asked`` fields if there is such a one.

    Raises:
        RowError: if it has the fields of none, with the ``--fields`` that would say which it is.
    """
    return detect_among(FORMATS, row, asked, propose=True)


def detect_among(
    formats: Sequence[Format[C_co]], row: Fields, asked: Set[str], *, propose: bool = False
) -> Format[C_co]:
    """Return the format of a row among some; with ``propose`` an error proposes ``--fields``.

    Raises:
        RowError: if it has the fields of none.
    """
    matching = [format_ for format_ in formats if format_.matches(row)]
    if matching:
        return next((format_ for format_ in matching if asked <= format_.fields), matching[0])
    for format_ in formats:
        format_.refuse_null(row)
    known = "; ".join(" and ".join(format_.needs) for format_ in formats)
    names = sorted(f"{name} (null)" if row[name] is None else str(name) for name in row)
    found = ", ".join(names[:12]) or "none"
    option = as_option(proposed_fields(row)) if propose else ""
    advice = f" Most likely it is meant so: --fields {option}" if option else ""
    raise RowError(f"Found the fields {found}. A row needs one of: {known}.{advice}", is_alike=True)


def named(formats: Iterable[Format[C_co]], name: str) -> Format[C_co]:
    """Return the format of a name."""
    return next(format_ for format_ in formats if format_.name == name)


def _messages(row: Fields) -> Content:
    return _chat(row, read_messages(row["messages"]))


def _conversations(row: Fields) -> Content:
    return _chat(row, read_messages(row["conversations"]))


def _prompt(row: Fields) -> Content:
    row = {**row, **as_listed({name: row[name] for name in ("prompt", "completion")})}
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str) or not isinstance(completion, str):
        before = _turns(row, "prompt", "user")
        return _chat(row, before + _turns(row, "completion", "assistant"), given=len(before))
    _refuse_tools(row, "a prompt and a completion")
    return Completion(
        _string(row, "prompt", empty=True),
        _string(row, "completion"),
        _system(row),
        _arguments(row),
    )


def _turns(row: Fields, name: str, role: str) -> list[Message]:
    """Return one half of an exchange: messages, one message, or a text as one."""
    value = row[name]
    if isinstance(value, str):
        return [{"role": role, "content": _string(row, name)}]
    if isinstance(value, list) and not value:
        raise RowError(f"The {name} has no messages. Fill it in or remove the row.")
    if not isinstance(value, (list, dict)):
        _string(row, name)
    return read_messages([value] if isinstance(value, dict) else value)


def _instruction(row: Fields) -> Content:
    has_input = bool(_string(row, "input", empty=True).strip())
    parts = [_string(row, "instruction", empty=has_input), _string(row, "input", empty=True)]
    prompt = "\n\n".join(part for part in parts if part.strip())
    _refuse_tools(row, "an instruction")
    exchange = Completion(prompt, _string(row, "output"), _system(row), _arguments(row))
    history = _history(row.get("history"))
    return exchange.as_chat().after(history) if history else exchange


def _history(value: Any) -> list[Message]:
    """Return the exchanges before, a list of pairs of texts, as messages."""
    if value in (None, "", []):
        return []
    pairs = value if isinstance(value, list) else None
    if pairs is None or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise RowError("The history must be a list of pairs of texts, a question and its answer.")
    turns = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return read_messages(turns)


def _labelled(row: Fields) -> Content:
    _refuse_tools(row, "a text and a label")
    return Labelled(_string(row, "text"), row["label"], _system(row), _arguments(row))


def _text(row: Fields) -> Content:
    if "label" in row and row["label"] is None:
        raise RowError(
            "The label beside this text is null. Fill it in or remove the row; to train on all"
            " texts without labels, remove the column."
        )
    return Text(_string(row, "text"))


def _chat(row: Fields, messages: list[Message], given: int = 0) -> Chat:
    """Return a chat with what stands beside its messages; the first ``given`` are only read."""
    system = _system(row)
    if system:
        own = [message["content"] for message in messages if message["role"] == "system"]
        if own and own != [system]:
            raise RowError(
                "The row has a system prompt beside its messages, and another one among them."
                " Keep one of them."
            )
        opening: list[Message] = [] if own else [{"role": "system", "content": system}]
        messages, given = opening + messages, given + len(opening)
    tools = read_tools(row.get("tools"), row.get("functions"))
    return Chat(messages, tools, given, _arguments(row))


def _system(row: Fields) -> str:
    """Return the system prompt that stands beside the messages, under either of its names."""
    if row.keys().isdisjoint(("system", "system_prompt")):
        return ""
    found = [_string(row, name, empty=True) for name in ("system", "system_prompt")]
    given = [text for text in found if text.strip()]
    if len(set(given)) > 1:
        raise RowError("The fields system and system_prompt differ. Keep one of them.")
    return given[0] if given else ""


def _arguments(row: Fields) -> dict[str, Any]:
    return read_template_arguments(row.get(FIELD))


def _refuse_tools(row: Fields, what: str) -> None:
    if read_tools(row.get("tools"), row.get("functions")):
        raise RowError(f"Tools need lists of messages; this row has {what} as text.")


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


FORMATS: tuple[Format[Content], ...] = (
    Format("messages", ("messages",), BESIDE, _messages),
    Format("conversations", ("conversations",), BESIDE, _conversations),
    Format("prompt/completion", ("prompt", "completion"), BESIDE, _prompt),
    Format(
        "instruction/input/output",
        ("instruction", "output"),
        ("input", "history", *BESIDE),
        _instruction,
    ),
    Format("text/label", ("text", "label"), BESIDE, _labelled),
    Format("text", ("text",), (), _text),
)
