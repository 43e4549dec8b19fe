"""Odd and hostile input: the right exit code, one sentence that helps, soon and in little memory."""

from __future__ import annotations

import json
import os
import time
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


PLAN_FILES = {
    "aliases": ("a: &a [1, 1]\nb: &b [*a, *a]\nchoice: [*b, *b]", "an alias (*)"),
    "anchor": ("choice: &a {b: *a}", "an alias (*)"),
    "deep list": ("choice: " + "[" * 100_000, "nested too deep"),
    "deep names": ("\n".join(" " * depth + "a:" for depth in range(400)), "nested too deep"),
    "digits": (f"choice: {'9' * 5000}", "a number of 5000 characters"),
    "base 60": (f"choice: {':'.join(['1'] * 50_000)}", "a number of 99999 characters"),
    "nan": ("choice: .nan", ".nan is not a number"),
    "infinite": ("choice: -.inf", "-.inf is not a number"),
    "date": ("choice: 2001-13-01", "a value of the type timestamp"),
    "code": ("choice: !!python/object/apply:os.system [x]", "a value of the type os.system"),
    "set": ("choice: !!set {a}", "a value of the type set"),
    "merge": ("choice: {<<: {a: 1}}", "a value of the type merge"),
    "twice": ("choice: {}\nchoice: {}", "a name occurs twice in line 1 or below"),
    "list as name": ("choice: {? [a] : b}", "found unhashable key in line 1"),
    "two": ("choice: {}\n---\n{}", "found another document in line 2"),
    "many": ("choice: [" + "1," * 100_000 + "1]", "more than 10,000 values"),
    "large": ("choice: " + "x" * (1 << 20), "larger than"),
    "escape": ("choice: \x1b", "unacceptable character"),
    "empty": ("", "is not a plan file"),
    "old": ("version: 0\nchoice: {}\nmodel: {ref: tiny}", "of version 0"),
    "six bytes": (None, "device.limit_bytes is 6 bytes"),
}


@pytest.mark.parametrize("name", PLAN_FILES)
def test_a_hostile_plan_file(cli: Cli, name: str) -> None:
    content, said = PLAN_FILES[name]
    if content is None:
        cli(
            "plan",
            "--model",
            "tiny",
            "--device",
            "cpu",
            "--memory",
            "1GB",
            "-q",
            "--output",
            "made.yaml",
        )
        made = Path("made.yaml").read_text()
        content = made.replace("limit_bytes: 1000000000", "limit_bytes: 6")
        assert content != made
    Path("plan.yaml").write_text(content)
    write_rows(Path("rows.jsonl"))
    before = time.process_time()
    called = cli("train", "--plan", "plan.yaml", "--data", "rows.jsonl", "--dry-run")
    assert (called.code, called.out) == (2, "")
    assert said in called.err
    assert len(called.err) < 300
    assert time.process_time() - before < 5


def test_a_plan_file_that_never_ends(cli: Cli) -> None:
    write_rows(Path("rows.jsonl"))
    os.mkfifo("pipe")
    for name in ("/dev/zero", "pipe"):
        called = cli("train", "--plan", name, "--data", "rows.jsonl", "--dry-run")
        assert called.code == 2
        assert "is not a regular file" in called.err


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    with new_folder(tmp_path / "link", 0) as partial:
        (partial / "file").touch()
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["file"]


NUMBERS = [
    ("--epochs", "1e308", "--epochs must be more than 0 to 1000000000; found 1e+308."),
    ("--epochs", "1e10", "--epochs must be more than 0 to 1000000000; found 10000000000.0."),
    ("--steps", 10**30, "--steps must be from 1 to 1000000000; found 1000000000000000000000000000000."),
    ("--steps", 10**400, "--steps must be from 1 to 1000000000; found 1000"),
    ("--rank", 10**400, "--rank must be 1 or more, and at most 9.22e+18; found 1000"),
    ("--rank", 10**30, "--rank must be 1 or more, and at most 9.22e+18; found 1000"),
    ("--rank-pattern", f"q_proj={10**400}", "--rank-pattern takes NAME=NUMBER"),
    ("--alpha-pattern", "q_proj=1e308", "--alpha-pattern takes NAME=NUMBER"),
    ("--alpha", "1e308", "--alpha must be more than 0, and at most 1e+38; found 1e+308."),
    ("--accumulation", 10**400, "--accumulation must be 1 or more, and at most 9.22e+18"),
    ("--micro-batch", 10**400, "--micro-batch must be 1 or more, and at most 9.22e+18"),
    ("--context", 10**400, "--context must be 2 or more, and at most 9.22e+18"),
    ("--eval-every", 10**400, "--eval-every must be 1 or more, and at most 9.22e+18"),
    ("--learning-rate", "1e38", "--learning-rate must be more than 0 to 1000000; found 1e+38."),
    ("--lora-plus", "1e38", "--lora-plus must be more than 0 to 1000000; found 1e+38."),
    ("--max-grad-norm", "inf", "--max-grad-norm must be more than 0; found inf."),
    ("--weight-decay", "1e308", "--weight-decay must be 0 or more, and at most 1e+38"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "number", "said"), NUMBERS, ids=[f"{x[0]} {x[1]!s:.9}" for x in NUMBERS]
)
def test_a_number_that_nothing_computes_with_is_refused(
    cli: Cli, flag: str, number: object, said: str
) -> None:
    rows = write_rows(Path("rows.jsonl"))
    for command in (("plan",), ("train", "--dry-run")):
        called = cli(
            *command, "--model", "tiny", "--device", "cpu", "--data", rows, f"{flag}={number}"
        )
        assert (called.code, called.out) == (2, "")
        assert said in called.err
    assert sorted(Path().iterdir()) == [rows]


@pytest.mark.parametrize("number", ["1.0e+308", "1" + "0" * 38])
def test_a_number_of_a_settings_file_is_refused_too(cli: Cli, number: str) -> None:
    rows = write_rows(Path("rows.jsonl"))
    Path("settings.yaml").write_text(f"epochs: {number}\n")
    called = cli("plan", "--model", "tiny", "--data", rows, "--config", "settings.yaml")
    assert called.code == 2
    assert "epochs must be more than 0 to 1000000000" in called.err


@pytest.mark.parametrize("rows", [10**12, 10**400])
def test_no_more_rows_are_shown_than_there_are(cli: Cli, rows: int) -> None:
    file = write_rows(Path("rows.jsonl"))
    begun = time.monotonic()
    called = cli("data", "check", file, "--rows", str(rows), "--json")
    assert called.code == 0, called.err
    assert len(json.loads(called.out)["rows"]) == 20
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("digits", [19, 400, 5000])
def test_a_line_with_too_many_digits_is_none(cli: Cli, digits: int) -> None:
    called = cli("data", "check", write_rows(Path("rows.jsonl")), "--show", "9" * digits)
    assert called.code == 2
    assert "There is no row at 9999999999999999999" in called.err
    assert len(called.err) < 200
