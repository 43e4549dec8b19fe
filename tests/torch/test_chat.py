"""Chats on a terminal and through pipes: what is kept, what is stopped, what is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rows import Called, call, write_rows
from terminals import CTRL_C, CTRL_D, Terminal

from edgetune.cli import run

LEARN = ("train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--steps", "1",
         "--output", "run")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(folder / "rows.jsonl")
    called = call(*LEARN, cwd=folder)
    assert called.code == 0, called.err
    return folder


class Piped:
    """Calls `edgetune chat` in this process with lines on its standard input."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Capture what is printed."""
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, lines: tuple[str, ...]) -> Called:
        """Chat to the end of the lines."""
        self._monkeypatch.setattr("sys.stdin", StringIO("".join(f"{x}\n" for x in lines)))
        code = run(["chat", *arguments])
        out, err = self._capsys.readouterr()
        return Called(code, out, err)


@pytest.fixture
def chat(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Piped:
    monkeypatch.chdir(folder)
    return Piped(monkeypatch, capsys)


def _asked(name: str, *prompts: str) -> list[str]:
    return ["generate", name, "-q", "--json", *(item for p in prompts for item in ("-p", p))]


def test_the_first_answer_is_that_of_generate(
    chat: Piped, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run", "run/adapter", "tiny"):
        called = chat(name, "-q", lines=("Turn on the lamp in the kitchen.",))
        assert run(_asked(name, "Turn on the lamp in the kitchen.")) == 0
        (expected,) = json.loads(capsys.readouterr().out)
        assert (called.code, called.out) == (0, expected["text"] + "\n")


def test_a_chat_is_saved_as_rows_and_goes_on_from_what_was_said(
    chat: Piped, tmp_path: Path
) -> None:
    file, second = tmp_path / "chat.jsonl", tmp_path / "second.jsonl"
    lines = ("Who lives here?", "And where?", f"/save {file}", "/reset", "Who lives here?",
             f"/save {second}", f"/save {file}")  # fmt: skip
    called = chat("run", "--system", "Be brief.", lines=lines)
    (row,), (after,) = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (file, second)
    )
    said = called.out.splitlines()

    assert called.code == 0
    assert [m["role"] for m in row["messages"]] == ["system", *["user", "assistant"] * 2]
    assert [m["content"] for m in row["messages"]][:2] == ["Be brief.", "Who lives here?"]
    assert row["messages"][2]["content"] == said[0]
    assert after["messages"] == row["messages"][:3]  # the same question without a past
    assert "it is there" in called.err
    assert run(["data", "check", str(file), "--model", "tiny", "-q"]) == 0


def test_base_and_tuned_answer_each_from_its_own_past(chat: Piped, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    called = chat("run", "--compare", "--max-tokens", "8", lines=("Hello", "Who?", f"/save {file}"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]

    assert [row["model"] for row in rows] == ["base", "run"]
    answers = [[m["content"] for m in row["messages"] if m["role"] == "assistant"] for row in rows]
    expected = [
        f"{row['model']}: {x[i]}" for i in (0, 1) for row, x in zip(rows, answers, strict=True)
    ]
    assert called.out == "".join(f"{line}\n" for line in expected)


def test_json_is_a_line_an_answer(chat: Piped) -> None:
    called = chat("tiny", "--json", "-q", "--max-tokens", "4", lines=("Hello", '"""', "Hi", '"""'))
    assert [json.loads(line)["model"] for line in called.out.splitlines()] == ["tiny"] * 2
    assert called.err == ""


def test_a_chat_that_has_become_too_long_is_said_and_goes_on(chat: Piped) -> None:
    called = chat("tiny", "--max-tokens", "4", lines=("word " * 3000, "Hello"))
    assert called.code == 0
    assert "has positions for" in called.err
    assert "/reset forgets all" in called.err
    assert len(called.out.splitlines()) == 1


def test_a_question_that_is_not_utf_8_is_refused_and_the_chat_goes_on(chat: Piped) -> None:
    called = chat("tiny", "--max-tokens", "4", lines=("caf\udce9", "Hello"))
    assert called.code == 0
    assert "half a character ('\\udce9' at character 4)" in called.err
    assert len(called.out.splitlines()) == 1


def test_a_prompt_in_a_pipe_that_is_not_utf_8_is_refused(folder: Path) -> None:
    """Even where Python would fail as it reads it."""
    asked = subprocess.run(
        [sys.executable, "-m", "edgetune", "generate", "tiny", "--raw"],
        cwd=folder, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, input=b"caf\xe9",
        capture_output=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 2
    assert b"half a character ('\\udce9' at character 4)" in asked.stderr


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        (("tiny", "--compare"), "there is no adapter"),
        (("absent",), "no run and no adapter absent"),
        (("run", "run"), "given twice"),
        (("tiny", "--system", "a\udcff"), "half a character ('\\udcff' at character 2)"),
    ],
)
def test_chats_that_make_no_sense_are_refused(
    chat: Piped, arguments: tuple[str, ...], because: str
) -> None:
    called = chat(*arguments, lines=("Hello",))
    assert called.code == 2
    assert because in called.err


def test_ctrl_c_stops_an_answer_and_not_the_chat(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    drawn = ("--temperature", "20", "--max-tokens", "100000")  # no end in sight
    terminal = Terminal("chat", "run", *drawn, cwd=folder)
    terminal.wait_for("> ")
    for _ in range(5):
        terminal.type(CTRL_C)
        terminal.wait_for("ends the chat.\r\n> ")
    for _ in range(3):
        terminal.type("Tell me everything.\n")
        terminal.wait_for("everything.\r\n")
        terminal.wait_for(" ")
        terminal.type(CTRL_C)
        terminal.wait_for("\r\n> ")
    terminal.type(f"/save {file}\n/help\n")
    terminal.wait_for("several lines.\r\n> ")  # before a prompt the terminal itself takes the key
    terminal.type(CTRL_D)

    assert terminal.end() == 0
    assert "bug of edgetune" not in terminal.read
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(row["messages"]) == 6
    assert all(message["content"] for message in row["messages"])


def test_what_ends_the_process_ends_the_chat(folder: Path) -> None:
    terminal = Terminal("chat", "tiny", cwd=folder)
    terminal.wait_for("> ")
    terminal.send(signal.SIGTERM)
    assert terminal.end() == 130


def test_columns_stand_side_by_side_on_a_terminal(folder: Path) -> None:
    terminal = Terminal("chat", "run", "--compare", "--max-tokens", "8", cwd=folder)
    terminal.wait_for("> ")
    terminal.type("Hello\n")
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0
    assert any("base" in line and "run" in line for line in terminal.read.splitlines())
