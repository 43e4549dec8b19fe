"""What others wrote is printed as text, and a command that is printed can be typed."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.escapes import one_line, plain, shell_word


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 中\u3000文 👩\u200d🔧 a\u200cb\n\ta", None),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\rb\x00\x07\x7f\x9b", "a\\rb\\x00\\x07\\x7f\\x9b"),
        ("exe\u202etxt.\u2066a\u2069", "exe\\u202etxt.\\u2066a\\u2069"),
        ("\ufeffa\u200bb\u2028", "\\ufeffa\\u200bb\\u2028"),
        ("caf\udce9", "caf\\udce9"),
    ],
)
def test_what_steers_a_terminal_is_escaped(text: str, shown: str | None) -> None:
    assert plain(text) == (text if shown is None else shown)
    assert one_line(text) == plain(text).replace("\n", "\\n").replace("\t", "\\t")


@given(st.text())
def test_what_is_plain_stays_as_it_is(text: str) -> None:
    once = plain(text)
    assert plain(once) == once
    assert len(one_line(text).splitlines()) <= 1
    once.encode()


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@given(st.lists(st.sampled_from("a '\"\\$`!\n\t\x1b\udcff\u202eé-*;|&~#(){}<>"), max_size=6))
def test_a_shell_reads_back_the_word(chars: list[str]) -> None:
    word = "".join(chars)
    command = os.fsencode(f"printf %s {shell_word(word)}")
    found = subprocess.run(
        ["bash", "-c", command], capture_output=True, check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert os.fsdecode(found.stdout) == word
