"""Rows of better and worse answers, told by their fields: they are never trained as answers."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from edgetune.data.problems import RowError
from edgetune.data.unpaired import LABELS, label_of
from edgetune.objectives import Rows

CHOSEN = ("chosen", "chosen_response", "response_chosen", "chosen_messages", "preferred_output",
           "preferred", "answer_chosen")  # fmt: skip
REJECTED = ("rejected", "rejected_response", "response_rejected", "rejected_messages",
             "rejected_output", "non_preferred_output", "dispreferred", "answer_rejected",
             "rejected_completion")  # fmt: skip
_TELLING = frozenset((*CHOSEN, *REJECTED, *LABELS))
_ANSWERS = ("completion", "response", "messages", "conversations", "output")


def refuse_preference(row: Mapping[str, Any], mapped: Set[str]) -> None:
    """Refuse a row of preference data, unless ``--fields`` maps a column that makes it such.

    Raises:
        RowError: naming the fields, with what to do.
    """
    if row.keys().isdisjoint(_TELLING):
        return
    pair = [name for name in (*CHOSEN, *REJECTED) if row.get(name) is not None]
    label = _label(row)
    if mapped & _TELLING or not (pair or label):
        return
    if pair:
        advice = _advice(row, next((name for name in pair if name in CHOSEN), None))
        named = " and ".join(pair[:3])
    else:
        named = f"{label} beside an answer"
        advice = (
            " Learn which answers are desirable with --objective kto; or keep the rows with the"
            f" good ones in a file of their own, without {label}. If {label} means something else,"
            " rename the column."
        )
    raise RowError(
        f"This is preference data ({named}): better and worse answers, and as plain answers they"
        f" would teach the worse ones too.{_objective(pair)}{advice}",
        is_alike=True,
    )


def _objective(pair: list[str]) -> str:
    """Return which objective learns from such rows."""
    has_both = set(pair) & {*CHOSEN} and set(pair) & {*REJECTED}
    return " Learn what is better with --objective dpo." if has_both else ""


def refuse_other_preference(row: Mapping[str, Any], kind: Rows) -> None:
    """Refuse a row of the other kind of preference data, which has an objective of its own.

    Raises:
        RowError: naming that objective.
    """
    pair = [name for name in (*CHOSEN, *REJECTED) if row.get(name) is not None]
    label = _label(row)
    if kind == "pairs" and label is not None and not pair:
        raise RowError(
            f"This is a single answer with {label}, which says whether it is desirable: rows for"
            " --objective kto. Pairs have two answers, chosen and rejected.",
            is_alike=True,
        )
    if kind == "unpaired" and label is None:
        raise RowError(
            "A row needs one answer, and a label or kto_tag that says whether it is desirable (true"
            " or false): beside prompt and completion, instruction and output, or beside messages or"
            " conversations of which it is the last. Or it is a pair of chosen and rejected.",
            is_alike=True,
        )


def _label(row: Mapping[str, Any]) -> str | None:
    """Return the field that says of an answer whether it is desirable, None without one."""
    return next((name for name in LABELS if _is_label(row, name)), None)


def _is_label(row: Mapping[str, Any], name: str) -> bool:
    """Whether a column says of an answer whether it is good, as KTO has it."""
    value = row.get(name)
    has_answer = any(row.get(answer) is not None for answer in _ANSWERS)
    is_said = label_of(value) is not None
    return value is not None and (name == "kto_tag" or (is_said and has_answer))


def _advice(row: Mapping[str, Any], chosen: str | None) -> str:
    if chosen is None:
        return " Remove the column of rejected answers to train on the others."
    value = row[chosen]
    said = isinstance(value, list) and any(
        isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human")
        for turn in value
    )
    prompts = ("prompt", "instruction", "question", "input", "conversations", "messages")
    prompt = next((name for name in prompts if row.get(name) is not None), None)
    if said or prompt is None:
        fields = f"{'messages' if isinstance(value, list) else 'text'}={chosen}"
    else:
        own = "" if prompt == "prompt" else f"prompt={prompt},"
        fields = f"{own}completion={chosen}"
    return f" To train on the chosen answers alone: --fields {fields}"
