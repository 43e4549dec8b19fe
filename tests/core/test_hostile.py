"""Odd and hostile input: the right exit code, one sentence that helps, soon and in little memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rows import Cli, chat, write_rows

from edgetune.escapes import plain
from edgetune.exporters.folder import new_folder

STEERING = "a\x1b[31m\r\x07\u202eb"
"""What turns a terminal red, hides what was printed, rings, and reverses the rest of a line."""


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in an empty folder, with nothing in the cache of models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    return Cli(capsys)


NAMED = [
    (("train", "--model", "tiny", "--data", f"{STEERING}.jsonl", "--dry-run"), 0),
    (("plan", "--model", "tiny", "--data", f"{STEERING}.jsonl", "--output", f"{STEERING}.yaml"), 0),
    (("data", "check", f"{STEERING}.jsonl", "--rows", "1"), 0),
    (("data", "check", f"{STEERING}.txt"), 4),
    (("data", "check", "rows.jsonl", "--fields", f"prompt={STEERING}"), 2),
    (("data", "check", "rows.jsonl", "--show", STEERING), 2),
    (("train", "--model", STEERING, "--data", "rows.jsonl"), 5),
    (("train", "--model", "tiny", "--data", f"{STEERING}.jsonl", "--output", STEERING), 2),
    (("train", "--plan", STEERING, "--data", "rows.jsonl"), 2),
    (("train", "--resume", "--output", STEERING), 5),
    (("plan", "--model", "tiny", "--device", STEERING), 2),
    (("plan", "--model", "tiny", "--targets", STEERING), 2),
    (("plan", "--model", "tiny", "--memory", STEERING), 2),
    (("plan", "--model", "tiny", f"--{STEERING}"), 2),
    (("generate", "nowhere", "-p", STEERING), 2),
    (("eval", f"{STEERING}-run", "--data", "rows.jsonl"), 2),
    ((STEERING,), 2),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code"), NAMED, ids=[plain(" ".join(a)) for a, _ in NAMED])
def test_no_name_steers_the_terminal(cli: Cli, arguments: tuple[str, ...], code: int) -> None:
    write_rows(Path("rows.jsonl"))
    write_rows(Path(f"{STEERING}.jsonl"), [chat(STEERING, f"so {STEERING} {i}") for i in range(20)])
    Path(f"{STEERING}.txt").touch()
    Path(STEERING).mkdir()
    (Path(STEERING) / "plan.yaml").write_text("version: 1\nchoice: {}\nmodel: {ref: ./nowhere}\n")
    called = cli(*arguments)
    assert called.code == code, called.err
    assert "Error: " in called.err or code == 0
    for shown in (called.out, called.err):
        assert plain(shown) == shown


def test_a_receipt_names_a_file_on_one_line(cli: Cli) -> None:
    rows = write_rows(Path("a\nFile        b.jsonl"))
    lines = cli("data", "check", rows).out.splitlines()
    (named,) = [line for line in lines if line.startswith("File")]
    assert named.startswith("File        a\\nFile        b.jsonl: 20 rows, sha256 ")
    receipt = json.loads(cli("data", "check", rows, "--json").out)
    assert receipt["files"][0]["name"] == "a\\nFile        b.jsonl"


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    with new_folder(tmp_path / "link", 0) as partial:
        (partial / "file").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["file"]
