"""Texts that say almost the same: MinHash to find candidates, Jaccard of word triples to decide.

Broder 1997, "On the resemblance and containment of documents". Triples that many texts share (a
system prompt, a list of tools, the words of a template) say nothing and are left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

ALIKE = 0.7
"""Two texts are near-duplicates from this share of common triples on."""

_BANDS, _ROWS = 24, 3  # texts with 0.7 in common meet in some band in 99.99 % of cases
_TABLE = 1 << 22
_COMMON = 0.02  # of all texts, but at least _FEW
_FEW = 20
_SHORT = 4  # triples; with fewer, texts must have the same words
_WORDS = re.compile(r"\w+")


def near_duplicates(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return for each text the first one that it is nearly equal to, -1 where there is none.

    Equal texts are not counted: they repeat each other, which is told elsewhere.
    """
    triples = _without_common([_triples(text) for text in texts])
    first = np.full(len(texts), -1, np.int64)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number, found in enumerate(triples):
        seen: set[int] = set()
        for key in _keys(found, texts[number]):
            seen.update(buckets[key][-_FEW:])
            buckets[key].append(number)
        for other in sorted(seen):
            if texts[other] != texts[number] and _alike(triples[other], found):
                first[number] = other
                break
    return first


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return _WORDS.findall(text.lower())


def _triples(text: str) -> Hashes:
    """Return the different triples of words of a text, as sorted hashes."""
    words = np.array([crc32(word.encode()) for word in words_of(text)], np.uint64)
    if len(words) < 3:
        return np.unique(words)
    mixed = words[:-2] * np.uint64(0x9E3779B97F4A7C15) ^ words[1:-1] * np.uint64(0xC2B2AE3D27D4EB4F)
    return np.unique(mixed ^ words[2:] * np.uint64(0x165667B19E3779F9))


def _without_common(all_triples: list[Hashes]) -> list[Hashes]:
    counts = np.zeros(_TABLE, np.uint32)
    for triples in all_triples:
        counts[np.unique(triples % np.uint64(_TABLE))] += 1
    most = max(_FEW, int(_COMMON * len(all_triples)))
    return [triples[counts[triples % np.uint64(_TABLE)] <= most] for triples in all_triples]


def _keys(triples: Hashes, text: str) -> list[tuple[int, bytes]]:
    """Return the bands of a text's signature; a short text has its words as its only one."""
    if len(triples) < _SHORT:
        return [(-1, " ".join(words_of(text)).encode())]
    turns = np.arange(1, _BANDS * _ROWS + 1, dtype=np.uint64)[:, None]
    mixed = (triples[None, :] ^ turns * np.uint64(0x9E3779B97F4A7C15)) * np.uint64(
        0xBF58476D1CE4E5B9
    )
    least = (mixed ^ mixed >> np.uint64(31)).min(axis=1).reshape(_BANDS, _ROWS)
    return [(band, row.tobytes()) for band, row in enumerate(least)]


def _alike(one: Hashes, other: Hashes) -> bool:
    if len(one) < _SHORT or len(other) < _SHORT:
        return len(one) == len(other)  # they are in one bucket, so that their words are the same
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common >= ALIKE * (len(one) + len(other) - common)
