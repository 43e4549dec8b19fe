"""Pairs of a better and a worse answer to one prompt, in the shapes that they come in.

| from            | the prompt                          | the answers                               |
|-----------------|-------------------------------------|-------------------------------------------|
| TRL             | prompt: text, messages, or none     | chosen, rejected: text or messages        |
| LLaMA-Factory   | instruction, input; conversations   | chosen, rejected: text or one message     |
| Axolotl         | question or instruction             | chosen, rejected; chosen_response, …      |
| OpenAI          | input: messages, tools              | preferred_output, non_preferred_output    |
| ms-swift        | messages without the last answer    | that answer, rejected_response            |

Without a prompt of its own, both answers are whole conversations, and what they share is the
prompt; so are texts of ``Human:`` and ``Assistant:`` turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from itertools import takewhile
from typing import Any

from edgetune.data.content import Chat, Completion, Content, Pair
from edgetune.data.formats import BESIDE, FORMATS, Fields, Format, kind_of, named
from edgetune.data.listed_text import as_listed
from edgetune.data.problems import RowError

_NAMES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)
_PROMPTS = ("prompt", "question", "conversations", "messages", "conversation")
_INSTRUCTION = ("instruction", "input", "history")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def _read(better: str, worse: str, row: Fields) -> Pair:
    """Return the pair of a row.

    Raises:
        RowError: if its prompt is not there or not one.
    """
    beside = {name: row[name] for name in BESIDE if row.get(name) is not None}
    listed = as_listed({name: row[name] for name in (better, worse)})
    if listed[better] is not row[better] and isinstance(row.get("prompt"), str):
        listed |= as_listed({"prompt": row["prompt"]})
    row = {**row, **listed}
    answers = [_conversation(row[name]) for name in (better, worse)]
    if all(map(_is_whole, answers)):
        halves = _parted(*answers)
        _refuse_other_prompt(row.get("prompt"), halves[0][0])
        names = (better, worse)
        return Pair(
            *(_exchange(*half, name, beside) for half, name in zip(halves, names, strict=True))
        )
    return Pair(*(_answered(row, answer, name, beside) for name, answer in
                  zip((better, worse), answers, strict=True)))  # fmt: skip


def _answered(row: Fields, answer: Any, name: str, beside: Mapping[str, Any]) -> Chat | Completion:
    """Return the prompt of a row with one of its answers."""
    if _is_whole(answer):
        raise RowError(f"The field {name} is a whole conversation, and the other answer is not.")
    given = row.get("input")
    if isinstance(given, dict):
        return _exchange(given.get("messages"), answer, name, {**beside, **_tools(given)})
    prompt = next((row[field] for field in _PROMPTS if row.get(field) is not None), None)
    if prompt is not None:
        return _exchange(prompt, answer, name, beside)
    if row.get("instruction") is None and given is None:
        raise RowError(
            f"There is no prompt beside {name}: one of {', '.join((*_PROMPTS, *_INSTRUCTION[:2]))},"
            f" or a {name} that begins with the user's turn."
        )
    parts = {field: row[field] for field in _INSTRUCTION if row.get(field) is not None}
    read = named(FORMATS, "instruction/input/output").read
    refuse_no_answer(answer, name)
    return _two_sided(read({"instruction": "", **parts, "output": answer, **beside}))


def _exchange(prompt: Any, answer: Any, name: str, beside: Mapping[str, Any]) -> Chat | Completion:
    """Return a prompt with an answer, which the row calls ``name``."""
    if prompt is None:
        raise RowError("The prompt has no messages. Fill it in or remove the row.")
    refuse_no_answer(answer, name)
    read = named(FORMATS, "prompt/completion").read
    return _two_sided(read({"prompt": prompt, "completion": answer, **beside}))


def refuse_no_answer(answer: Any, name: str) -> None:
    """Refuse what is neither a text nor messages, by the name that the row has for it.

    Raises:
        RowError: naming the field.
    """
    if isinstance(answer, str) and not answer.strip():
        raise RowError(f"The field {name} is empty. Fill it in or remove the row.")
    messages = answer if isinstance(answer, list) else [answer]
    strange = [each for each in messages if not isinstance(each, dict)]
    if not isinstance(answer, str) and (strange or not messages):
        found = f"a list with {kind_of(strange[0])}" if messages is answer and strange else None
        raise RowError(
            f"The field {name} must be text, a message or a list of messages; found"
            f" {found or kind_of(answer)}."
        )


def _two_sided(content: Content) -> Chat | Completion:
    assert isinstance(content, (Chat, Completion))
    return content


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": given["tools"]} if given.get("tools") is not None else {}


def _is_whole(answer: Any) -> bool:
    """Whether an answer is a conversation that begins with what it answers."""
    if not isinstance(answer, list) or not answer or not isinstance(answer[0], dict):
        return False
    role = answer[0].get("role", answer[0].get("from"))
    return str(role).lower() in ("user", "human", "system", "developer")


def _parted(chosen: list[Any], rejected: list[Any]) -> list[tuple[list[Any], list[Any]]]:
    """Return two conversations as the prompt that they share and what follows.

    Raises:
        RowError: if they part at a turn that is not the assistant's, or one ends in the prompt.
    """
    both = zip(chosen, rejected, strict=False)
    shared = sum(1 for _ in takewhile(lambda turns: turns[0] == turns[1], both))
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    for turn in (chosen[shared], rejected[shared]):
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        if str(role).lower() in ("user", "human", "system", "developer"):
            raise RowError(
                f"The conversations of a pair must part at an answer; these part at message"
                f" {shared + 1}, which is the {role}'s. Both must answer one prompt."
            )
    return [(turns[:shared], turns[shared:]) for turns in (chosen, rejected)]


def _refuse_other_prompt(prompt: Any, shared: list[Any]) -> None:
    """Refuse a prompt beside whole conversations that is none of what they begin with.

    Raises:
        RowError: as it would be left out without a word.
    """
    said = [turn.get("content", turn.get("value")) for turn in shared]
    if isinstance(prompt, list):
        given = [
            turn.get("content", turn.get("value")) for turn in prompt if isinstance(turn, dict)
        ]
        is_there = all(each in said for each in given)
    elif isinstance(prompt, str):
        texts = [text.strip() for text in said if isinstance(text, str)]
        within = any(text and (text in prompt or prompt.strip() in text) for text in texts)
        is_there = within or len(texts) < len(said)
    else:
        is_there = True
    if not is_there:
        raise RowError(
            "The prompt is not among the messages that chosen and rejected begin with, so it would"
            " be left out. Put it in front of both, or remove the column."
        )


def _conversation(answer: Any) -> Any:
    """Return a text of ``Human:`` and ``Assistant:`` turns as messages, others as they are."""
    if not isinstance(answer, str) or not answer.lstrip().startswith("Human:"):
        return answer
    _, *parts = _TURN.split(answer.strip())
    speakers, texts = parts[::2], parts[1::2]
    return [
        {"role": _SPEAKERS[speaker], "content": text.strip()}
        for speaker, text in zip(speakers, texts, strict=True)
    ]


_WITH_BOTH: tuple[Format[Pair], ...] = tuple(
    Format(
        f"pairs of {better} and {worse}",
        (better, worse),
        (*_PROMPTS, *_INSTRUCTION, *BESIDE),
        partial(_read, better, worse),
    )
    for better, worse in _NAMES
)


def _with_rejected(row: Fields) -> Pair:
    """Return the pair of a conversation and another last answer."""
    messages = row["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise RowError("The messages must be a list that ends with the better answer.")
    beside = {name: row[name] for name in BESIDE if row.get(name) is not None}
    answers = {"messages": [messages[-1]], "rejected_response": row["rejected_response"]}
    return Pair(
        *(_exchange(messages[:-1], answer, name, beside) for name, answer in answers.items())
    )


PAIR_FORMATS: tuple[Format[Pair], ...] = (
    *_WITH_BOTH,
    Format(
        "messages and rejected_response",
        ("messages", "rejected_response"),
        BESIDE,
        _with_rejected,
    ),
)
