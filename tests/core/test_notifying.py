"""A notification is what was meant, whatever the text: nothing of it is read by a shell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgetune.errors import StoppedError
from edgetune.workflows.notifying import notified, notifier, notify

ODD = "$(touch hacked) `touch hacked`; \"quoted\" 'too' <b>bold</b> & \\ -u critical"
PROGRAM = "osascript" if sys.platform == "darwin" else "notify-send"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stand-in for the desktop's program writes down its arguments, one a line."""
    monkeypatch.chdir(tmp_path)
    told = tmp_path / "told"
    program = tmp_path / "bin" / PROGRAM
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nfor a in "$@"; do printf "%s\\n" "$a" >> {told}; done\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return told


def test_the_text_arrives_as_it_is_and_is_run_by_nobody(shown: Path) -> None:
    assert notifier() is not None
    assert notify("edgetune", ODD)

    lines = shown.read_text().splitlines()
    assert lines[-2] == "edgetune"
    said = lines[-1].replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
    assert said.replace("&#x27;", "'").replace("&amp;", "&") == ODD
    assert not Path("hacked").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="notify-send takes flags, osascript none")
def test_a_text_is_no_flag_and_no_markup(shown: Path) -> None:
    notify("--urgency=critical", "<img src=x>")

    lines = shown.read_text().splitlines()
    assert lines == ["--app-name=edgetune", "--", "--urgency=critical", "&lt;img src=x&gt;"]


def test_every_end_is_told_but_the_users_own(shown: Path) -> None:
    with notified("first", wanted=True):
        pass
    with pytest.raises(StoppedError), notified("second", wanted=True):
        raise StoppedError("Stopped after step 3.\nmore")
    with pytest.raises(ZeroDivisionError), notified("third", wanted=True):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), notified("fourth", wanted=True):
        raise KeyboardInterrupt
    with notified("fifth", wanted=False):
        pass

    told = [line for line in shown.read_text().splitlines() if line.split(":")[0] != "--app-name"]
    assert [line for line in told if line.startswith(("first", "second", "third", "f"))] == [
        "first is done.", "second: Stopped after step 3.", "third failed: ZeroDivisionError",
    ]  # fmt: skip


def test_without_a_program_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert notifier() is None
    assert not notify("edgetune", "done")


def test_a_program_that_fails_or_hangs_ends_nothing(shown: Path) -> None:
    program = shown.parent / "bin" / PROGRAM
    program.write_text("#!/bin/sh\nexit 1\n")

    assert not notify("edgetune", "done")
