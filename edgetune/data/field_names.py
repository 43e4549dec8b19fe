"""What the columns of a file most likely mean: the ``--fields`` that an error proposes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns",
          "message", "chats", "msgs")  # fmt: skip
_QUESTIONS = ("prompt", "instruction", "question", "query", "problem", "user", "human", "input",
              "inputs", "request", "source", "text_input")  # fmt: skip
_INPUTS = ("input", "context", "inputs", "passage")
_ANSWERS = ("completion", "output", "response", "answer", "reply", "assistant", "solution",
            "target", "targets", "outputs", "answers", "generation", "bot", "gpt")  # fmt: skip
_SYSTEMS = ("system_prompt", "system_message", "system")
_LABELS = ("label", "labels", "label_text", "category", "class", "intent", "sentiment", "topic")
_LABELLED = ("text", "sentence", "review", "utterance", "comment", "tweet", "headline", "title")
_TEXTS = ("text", "content", "document", "body", "article", "markdown", "story", "code")


def proposed_fields(row: Mapping[str, Any]) -> dict[str, str]:
    """Return columns of a row under the names of a format, nothing if none is plain.

    >>> proposed_fields({"question": "Who?", "answer": "Ann."})
    {'prompt': 'question', 'completion': 'answer'}
    """
    columns = {name.lower(): name for name in row if row[name] is not None and _can_be_typed(name)}
    chat = next((columns[name] for name in _CHATS if _is_chat(row, columns.get(name))), None)
    if chat is not None:
        return {"messages": chat}
    answer = _first(row, columns, _ANSWERS)
    question = _first(row, columns, _QUESTIONS, {answer})
    if answer is None and (label := _first_label(row, columns)) is not None:
        labelled = _first(row, columns, (*_LABELLED, *_TEXTS, *_QUESTIONS), {label})
        if labelled is not None:
            return _named(text=labelled, label=label)
    if answer is None or question is None:
        text = _first(row, columns, _TEXTS)
        return {} if text is None or answer or question else _named(text=text)
    context = _first(row, columns, _INPUTS, {question, answer})
    system = _first(row, columns, _SYSTEMS)
    if context is None:
        return _named(system=system, prompt=question, completion=answer)
    return _named(system=system, instruction=question, input=context, output=answer)


def as_option(fields: Mapping[str, str]) -> str:
    """Return fields as they are typed; those that have their name already are left out."""
    return ",".join(f"{ours}={theirs}" for ours, theirs in fields.items() if ours != theirs)


def _named(**fields: str | None) -> dict[str, str]:
    return {ours: theirs for ours, theirs in fields.items() if theirs is not None}


def _first(
    row: Mapping[str, Any],
    columns: Mapping[str, str],
    names: Iterable[str],
    taken: Iterable[str | None] = (),
) -> str | None:
    """Return the first column that has one of the names and holds text."""
    found = (columns[name] for name in names if name in columns)
    return next((name for name in found if name not in taken and isinstance(row[name], str)), None)


def _first_label(row: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    found = (columns[name] for name in _LABELS if name in columns)
    return next((name for name in found if isinstance(row[name], (str, int))), None)


def _is_chat(row: Mapping[str, Any], name: str | None) -> bool:
    value = row[name] if name is not None else None
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and not value[0].keys().isdisjoint(("role", "from"))
    )


def _can_be_typed(name: str) -> bool:
    return bool(name.strip()) and not set(name) & set(",= \"'\\")
