"""The verdicts on all structures as a table, with the reasons of all that is not exact below it."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from template_table import chatml, llama, others
from template_table.chats import CHATS
from template_table.judge import Verdict, judge
from template_table.model import tokenizer_of
from template_table.structure import Structure

STRUCTURES: dict[str, Structure] = {**chatml.STRUCTURES, **llama.STRUCTURES, **others.STRUCTURES}
Verdicts = Mapping[str, Mapping[str, Verdict]]

_MARK = {"exact": "=", "noted": "n", "refused": "r", "silent": "SILENT"}
_CUT = re.compile(r"begins without (['\"]).*?\1(?=;|$)", re.DOTALL)


def verdicts_of(structures: Mapping[str, Structure]) -> dict[str, dict[str, Verdict]]:
    """Return the verdict on each chat for each structure."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, structure) in enumerate(structures.items()):
            tokenizer = tokenizer_of(structure, Path(folder) / str(number))
            found[name] = {chat: judge(tokenizer, row) for chat, row in CHATS.items()}
    return found


def table(verdicts: Verdicts) -> str:
    """Return the verdicts in Markdown."""
    reasons = _numbered(verdicts)
    lines = [f"| | {' | '.join(CHATS)} |", "|---|" + ":-:|" * len(CHATS)]
    lines += [
        f"| {name} | {' | '.join(_cell(row[chat], reasons) for chat in CHATS)} |"
        for name, row in verdicts.items()
    ]
    counts = Counter(verdict.kind for row in verdicts.values() for verdict in row.values())
    total = ", ".join(f"{counts[kind]} {kind}" for kind in _MARK)
    return "\n".join([*lines, "", f"{counts.total()} cells: {total}.", "", *_listed(reasons)])


def _cell(verdict: Verdict, reasons: Mapping[tuple[str, str], int]) -> str:
    mark = _MARK[verdict.kind]
    return mark if verdict.kind == "exact" else f"{mark}{reasons[_reason(verdict)]}"


def _numbered(verdicts: Verdicts) -> dict[tuple[str, str], int]:
    """Return all reasons with their numbers, the most frequent first."""
    found = Counter(
        _reason(verdict) for row in verdicts.values() for verdict in row.values()
        if verdict.kind != "exact"
    )  # fmt: skip
    ordered = sorted(found, key=lambda reason: (reason[0], -found[reason], reason[1]))
    numbers: Counter[str] = Counter()
    numbered = {}
    for reason in ordered:
        numbers[reason[0]] += 1
        numbered[reason] = numbers[reason[0]]
    return numbered


def _reason(verdict: Verdict) -> tuple[str, str]:
    """Return why a cell is not exact, without what differs from chat to chat."""
    text = _CUT.sub("begins without the end of the generation prompt", verdict.because)
    text = re.sub(r"essage \d+", "essage N", text).split(". ")[0].rstrip(".")
    return verdict.kind, text


def _listed(reasons: Mapping[tuple[str, str], int]) -> Iterator[str]:
    for (kind, text), number in reasons.items():
        yield f"- {_MARK[kind]}{number}: {text}"
