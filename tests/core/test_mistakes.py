"""Each mistake is answered with what was found and what to do: no traceback, no wall of text."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from mistakes import ALL, Mistake
from rows import write_rows

from edgetune.cli import run

LINES = 12
NAMES = 10
"""Most lines of an answer, and most names that it lists."""


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with some rows, and nothing in any cache or store."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "OLLAMA_MODELS", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    write_rows(Path("rows.jsonl"))


def answer(mistake: Mistake) -> tuple[int, str]:
    """Type the line and return the exit code and all that was printed."""
    for name, content in mistake.files.items():
        file = Path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with CliRunner().isolation() as (out, err, _):
        code = run(shlex.split(mistake.line))
        return code, (err.getvalue() + out.getvalue()).decode()


@pytest.mark.parametrize("mistake", ALL, ids=lambda mistake: mistake.line)
def test_a_mistake_is_answered(mistake: Mistake) -> None:
    code, said = answer(mistake)
    flat = " ".join(said.split())

    assert code == mistake.code, said
    assert all(words in flat for words in mistake.says), said
    assert "Traceback" not in said
    assert "bug of edgetune" not in said
    if code:
        told = said.partition("Error: ")[2] or said
        assert len(said.rstrip().splitlines()) <= LINES, said
        assert max(map(_names, re.split(r"[.:\n]", told))) <= NAMES, said


def _names(sentence: str) -> int:
    """Return how many names a sentence lists."""
    return max(sentence.count(","), sentence.count("|")) + 1


def test_there_are_enough_and_they_are_real() -> None:
    links = [mistake.link for mistake in ALL if mistake.link]

    assert len(ALL) >= 85
    assert len(links) >= 40
    assert len(set(links)) >= 40
    assert all(re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/issues/\d+", x) for x in links)
    twice = [line for line, count in Counter((m.line, *sorted(m.files.items())) for m in ALL).items()
             if count > 1]  # fmt: skip
    assert twice == []
