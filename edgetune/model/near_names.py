"""Names that mean a known model without being its name: other tools' spellings, and near misses.

A name is read as its family, version, size and variant, whatever stands between them:

>>> reading("Qwen/Qwen2.5-7B-Instruct") == reading("qwen-2.5_7b instruct")
True
>>> reading("unsloth/llama-3-8b-bnb-4bit").words, reading("llama3:8b").words
(('3', '8b', 'llama'), ('3', '8b', 'llama'))
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from edgetune.profile import MOST_PROPOSED, hub_ids, model_names, usual_models

_ALIKE: Final = 0.6
"""Share of two names that must be the same for one to be proposed for the other."""

_FORMAT: Final = re.compile(
    r"(?<![a-z0-9])(bnb|gguf|awq|gptq|hqq|exl2|mlx|\d+bit|b?f(p)?(16|32)|int[48]|fp8"
    r"|i?q\d(_\w+)?|quantized|dynamic)(?![a-z0-9])"
)
"""Words about how the numbers of a copy are stored."""
_WORDS: Final = re.compile(r"v?\d+(?:\.\d+)*[bm](?![a-z0-9])|v?\d+(?:\.\d+)*|[a-z]+")
_TUNED: Final = frozenset({"instruct", "it", "chat"})
_IDLE: Final = frozenset({"meta", "hf", "latest", "base", "pt", "unsloth", "text"})
"""Words that leave it open which model is meant."""
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.:\- ]*(/[A-Za-z0-9][\w.:\- ]*)?")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a name says of a model: its words in any order, and whether it was tuned to answer."""

    words: tuple[str, ...]
    tuned: bool


@dataclass(frozen=True, slots=True)
class Meant:
    """The profile that a name means. ``copy`` is whether it names another's files of the same shape."""

    profile: str
    copy: bool = False


def reading(name: str) -> Reading:
    """Return what a name says, whoever published the model and however its numbers are stored."""
    plain = _FORMAT.sub(" ", name.lower().rpartition("/")[2].replace("-bit", "bit"))
    words = _WORDS.findall(plain)
    kept = tuple(sorted(word for word in words if word not in _IDLE | _TUNED))
    return Reading(kept, tuned=not _TUNED.isdisjoint(words))


def meant(name: str) -> Meant | None:
    """Return the one known model that a name means, None where it means none or several."""
    if _NAME.fullmatch(name) is None:
        return None
    profile = _usual(name) or _same_reading(name)
    return None if profile is None else Meant(profile, copy=_is_copy(name, profile))


def proposed(name: str) -> tuple[str, ...]:
    """Return the known models whose names are most like a name, the most alike first."""
    wanted = reading(name)
    size = [word for word in wanted.words if word[-1] in "bm" and word[0].isdigit()]
    likeness = {
        known: _likeness(wanted, _reading_of(known)) + (0.1 if _has(known, size) else 0.0)
        for known in model_names()
    }
    near = sorted(likeness, key=lambda known: (-likeness[known], known))
    return tuple(known for known in near if likeness[known] >= _ALIKE)[:MOST_PROPOSED]


def _usual(name: str) -> str | None:
    """Return what is meant by a family's name without a size."""
    wanted = reading(name)
    return next(
        (known for alias, known in usual_models().items() if reading(alias).words == wanted.words),
        None,
    )


def _same_reading(name: str) -> str | None:
    wanted = reading(name)
    # Ollama's tags name the tuned models.
    tuned = wanted.tuned or (
        ":" in name and not {"base", "text"} & set(_WORDS.findall(name.lower()))
    )
    found = [known for known in model_names() if wanted.words in _words_of(known)]
    same = [known for known in found if _is_tuned(known) == tuned]
    chosen = same or found
    return chosen[0] if len(chosen) == 1 else None


def _is_copy(name: str, profile: str) -> bool:
    owner, slash, rest = name.lower().partition("/")
    hub_id = (hub_ids().get(profile) or "").lower()
    return bool(slash) and owner != hub_id.partition("/")[0] and _FORMAT.search(rest) is None


@cache
def _words_of(profile: str) -> frozenset[tuple[str, ...]]:
    return frozenset(reading(name).words for name in _names_of(profile))


def _names_of(profile: str) -> Iterator[str]:
    yield profile
    if hub_id := hub_ids().get(profile):
        yield hub_id


def _is_tuned(profile: str) -> bool:
    return any(reading(name).tuned for name in _names_of(profile))


def _reading_of(profile: str) -> Reading:
    return Reading(reading(profile).words, _is_tuned(profile))


def _has(profile: str, words: list[str]) -> bool:
    return bool(words) and set(words) <= set(reading(profile).words)


def _likeness(one: Reading, other: Reading) -> float:
    from difflib import SequenceMatcher

    alike = SequenceMatcher(None, " ".join(one.words), " ".join(other.words)).ratio()
    return alike - (0.0 if one.tuned == other.tuned else 0.05)
