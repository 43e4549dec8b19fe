"""Whether a turn is learned, as the files of different tools say it of a single message.

| field                  | of                        | not learned |
|------------------------|---------------------------|-------------|
| weight, loss_weight    | OpenAI, OpenChat          | 0           |
| train, training, loss  | Axolotl, ms-swift         | false       |
| masked                 | torchtune                 | true        |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune.data.problems import RowError

_WEIGHTS = ("weight", "loss_weight")
_LEARNED = ("train", "training", "loss")
_MASKED = ("masked",)
_UNUSABLE = {
    "mask": "some tools learn a turn whose mask is true, others the rest",
    "train_detail": "parts of a turn cannot be left out",
    "training_detail": "parts of a turn cannot be left out",
    "loss_scale": "a turn is learned or not, nothing between",
}
FIELDS = frozenset((*_WEIGHTS, *_LEARNED, *_MASKED, *_UNUSABLE))
"""All fields of a message that say whether it is learned."""

_TRUTHS: dict[object, bool] = {True: True, False: False, "true": True, "false": False}


def read_weight(message: Mapping[str, Any], role: str, number: int) -> int | None:
    """Return 1 or 0 where a message says whether it is learned, None where it does not.

    Raises:
        RowError: naming the field that cannot be honoured, or two that contradict each other.
    """
    given = {name: value for name, value in message.items() if name in FIELDS and value is not None}
    if not given:
        return None
    found = {name: _learned(name, value, number) for name, value in given.items()}
    if len(set(found.values())) > 1:
        raise RowError(
            f"Message {number} is both learned and not, by {' and '.join(found)}. Keep one of them."
        )
    learned = next(iter(found.values()))
    if learned and role != "assistant" and not found.keys().isdisjoint(_LEARNED[:2]):
        raise RowError(
            f"Message {number} ({role}) is marked to be learned, and only what the assistant says"
            " is. Remove the mark, or make it a row of its own with the text as the answer."
        )
    return int(learned)


def _learned(name: str, value: Any, number: int) -> bool:
    if name in _UNUSABLE:
        raise RowError(
            f"Message {number} has {name}, which cannot be followed: {_UNUSABLE[name]}. Use"
            " weight 0 for a turn that is only read."
        )
    if name in _WEIGHTS:
        if not isinstance(value, (int, float)) or value not in (0, 1):
            raise RowError(f"Message {number} has a {name} that is neither 0 nor 1.")
        return bool(value)
    text = value.lower() if isinstance(value, str) else value
    known = isinstance(text, (str, int)) and text in _TRUTHS
    if not known:
        raise RowError(f"Message {number} has a {name} that is neither true nor false.")
    return _TRUTHS[text] != (name in _MASKED)
