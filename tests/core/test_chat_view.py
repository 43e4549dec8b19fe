"""Answers as they are shown: without the texts of tokens that say nothing to a reader."""

from __future__ import annotations

import pytest

from edgetune.cli.chat_view import shown

SPECIAL = frozenset({"<|im_start|>", "<|im_end|>"})


@pytest.mark.parametrize("labels", [["run"], ["base", "run"]])
def test_special_tokens_are_kept_and_not_shown(
    labels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = [
        (side, piece) for piece in ("Yes", "<|im_start|>", " <b>") for side in range(len(labels))
    ]
    assert shown(iter(pieces), labels, SPECIAL) == ["Yes<|im_start|> <b>"] * len(labels)
    lines = capsys.readouterr().out.splitlines()
    assert [line.removeprefix(f"{name}: ") for name, line in zip(labels, lines, strict=True)] == [
        "Yes <b>"
    ] * len(labels)
