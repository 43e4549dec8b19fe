"""Files that say what they are for, fields with other names, and rows that are looked at."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from data_support import SHAPES, chat, write_model, write_rows
from rows import Cli

from edgetune.data import Tokenizer, load_tokenizer, parse_fields, read_dataset, show_rows
from edgetune.errors import DataError, UsageError

PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("chatml"), SHAPES["chatml"]))


def chats(first: int, stop: int) -> list[object]:
    return [chat(f"hello {n}", f"fine {n}") for n in range(first, stop)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, bounds in {"train": (0, 8), "valid": (6, 11), "test": (20, 23)}.items():
        write_rows(tmp_path / f"{name}.jsonl", chats(*bounds))
    return tmp_path


def test_a_folder_that_names_its_sides_is_taken_at_its_word(folder, tokenizer):
    dataset = read_dataset(folder, tokenizer)
    receipt = dataset.receipt
    assert (receipt.rows_read, receipt.rows_trained, receipt.rows_validation) == (13, 8, 3)
    assert [row.place for row in receipt.dropped] == ["valid.jsonl:1", "valid.jsonl:2"]
    assert all("the same row is trained" in row.because for row in receipt.dropped)
    assert "files not read, as they are for tests: test.jsonl" in receipt.notes
    assert "validation rows are those of valid.jsonl; no others are held back" in receipt.notes
    assert [dataset.validation.place(i) for i in range(3)] == [
        f"valid.jsonl:{n}" for n in (3, 4, 5)
    ]
    fitted = dataset.fit(500).fit(400).receipt
    assert (fitted.rows_trained, fitted.rows_validation, len(fitted.dropped)) == (8, 3, 2)


@pytest.mark.parametrize(
    ("name", "is_validation"),
    [("validation-00000-of-00001.jsonl", True), ("val.jsonl", True), ("dev_2.jsonl", True),
     ("eval.jsonl", True), ("valuable.jsonl", False), ("development.jsonl", False),
     ("devices.jsonl", False), ("chats-valid.jsonl", True), ("Chats_VAL2.jsonl", True),
     ("dev/a.jsonl", True), ("my eval set/deep/a.jsonl", True), ("dev/train.jsonl", False),
     ("invalid.jsonl", False)],
)  # fmt: skip
def test_names_of_validation_files(name, is_validation, tokenizer, tmp_path):
    write_rows(tmp_path / "train.jsonl", chats(0, 5))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write_rows(tmp_path / name, chats(5, 10))
    receipt = read_dataset(tmp_path, tokenizer, validation=0).receipt
    assert receipt.rows_validation == (5 if is_validation else 0)


@pytest.mark.parametrize(
    "name", ["test.jsonl", "chats-test.jsonl", "test/a.jsonl", "a/TEST_2.jsonl"]
)
def test_files_for_tests_are_not_trained(name, tokenizer, tmp_path):
    write_rows(tmp_path / "chats.jsonl", chats(0, 10))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_rows(tmp_path / name, chats(10, 15))
    receipt = read_dataset(tmp_path, tokenizer).receipt
    assert [file.name for file in receipt.files] == ["chats.jsonl"]
    assert (receipt.rows_trained, receipt.rows_validation) == (9, 1)
    assert f"files not read, as they are for tests: {name}" in receipt.notes
    assert read_dataset(tmp_path, tokenizer, by_name=False).receipt.rows_read == 15
    (tmp_path / "chats.jsonl").unlink()
    alone = read_dataset(tmp_path, tokenizer).receipt
    assert alone.rows_read == 5
    assert "all files are named for tests, and they are trained" in alone.notes


@PIPES
def test_what_is_hidden_or_no_file_is_named_and_not_read(tokenizer, tmp_path):
    folder = tmp_path / "data"
    for name in (".git", "more", "../elsewhere"):
        (folder / name).mkdir(parents=True)
    for name in (".git/a.jsonl", ".b.jsonl", "more/.c.jsonl", "../elsewhere/d.jsonl", "e.jsonl"):
        write_rows(folder / name, chats(0, 3))
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (folder / "link.jsonl").symlink_to(tmp_path / "elsewhere" / "d.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    receipt = read_dataset(folder, tokenizer).receipt
    assert [file.name for file in receipt.files] == ["e.jsonl", "link.jsonl"]
    assert (
        "files not read: .b.jsonl, .git/, gone.jsonl, link/, more/.c.jsonl, pipe.jsonl"
        in receipt.notes
    )


def test_many_files_that_are_not_read_are_counted(tokenizer, tmp_path):
    write_rows(tmp_path / "train.jsonl", chats(0, 3))
    for number in range(100, 150):
        (tmp_path / f"{number}.png").touch()
    (note, *_) = read_dataset(tmp_path, tokenizer).receipt.notes
    assert note.startswith("files not read: 100.png, 101.png, ")
    assert note.endswith(" 109.png and 40 more")


@PIPES
@pytest.mark.parametrize("side", ["data", "validation_data"])
def test_a_pipe_is_refused(side, tokenizer, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    rows = write_rows(tmp_path / "rows.jsonl", chats(0, 3))
    for odd in (tmp_path / "pipe.jsonl", Path(os.devnull)):
        both = (odd, None) if side == "data" else (rows, odd)
        with pytest.raises(DataError, match=f"{odd.name} is a pipe, a socket or a device"):
            read_dataset(both[0], tokenizer, validation_data=both[1])


def test_validation_data_takes_the_place_of_a_share(tokenizer, tmp_path):
    train = write_rows(tmp_path / "mine.jsonl", chats(0, 8))
    other = write_rows(tmp_path / "other.jsonl", chats(8, 12))
    receipt = read_dataset(train, tokenizer, validation_data=other).receipt
    assert (receipt.rows_trained, receipt.rows_validation) == (8, 4)
    assert [file.name for file in receipt.files] == ["mine.jsonl", "other.jsonl"]


@pytest.mark.parametrize("name", ["held.jsonl", "valid.jsonl"])
def test_a_file_for_validation_within_the_folder_is_read_once(name, tokenizer, tmp_path):
    write_rows(tmp_path / "chats.jsonl", chats(0, 8))
    held = write_rows(tmp_path / name, chats(8, 12))
    receipt = read_dataset(tmp_path, tokenizer, validation_data=held).receipt
    assert (receipt.rows_read, receipt.rows_trained, receipt.rows_validation) == (12, 8, 4)
    with pytest.raises(DataError, match="none to train on"):
        read_dataset(held, tokenizer, validation_data=held)


def test_the_fingerprint_changes_with_the_side_of_a_row(tokenizer, tmp_path):
    found = set()
    for first in (4, 5):
        write_rows(tmp_path / "train.jsonl", chats(0, first))
        write_rows(tmp_path / "valid.jsonl", chats(first, 8))
        found.add(read_dataset(tmp_path, tokenizer).fingerprint)
    assert len(found) == 2


def test_a_folder_for_validation_alone_is_refused(tokenizer, tmp_path):
    write_rows(tmp_path / "valid.jsonl", chats(0, 3))
    with pytest.raises(DataError, match="none to train on"):
        read_dataset(tmp_path, tokenizer)


def test_nearly_empty_rows_are_told(tokenizer, tmp_path):
    rows: list[object] = [{"text": "hello there"}, {"text": "a"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = read_dataset(tmp_path / "rows.jsonl", tokenizer).receipt.notes
    assert any(note.endswith("learned tokens: 1, the first is rows.jsonl:2") for note in notes)


def test_fields_are_parsed():
    assert parse_fields("prompt=question, completion=the answer") == {
        "prompt": "question",
        "completion": "the answer",
    }
    for wrong in ("prompt", "prompt=", "=x", "answer=x", "prompt=a,prompt=b", ""):
        with pytest.raises(UsageError, match="--fields"):
            parse_fields(wrong)


MAPPED_ROWS = [
    {"question": "hello", "prompt": "old", "answer": "fine", "messages": None},
    {"question": "hello", "prompt": "old", "answer": "fine", "about": "be kind"},
]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            "prompt=qeustion,completion=answer",
            "--fields names qeustion, and no row has such a column. There are: about, answer,",
        ),
        (
            "prompt=question,completion=answer,input=about",
            "--fields names input, and rows of prompt/completion have no such field. They have:",
        ),
        ("text=question,prompt=prompt", "names prompt, and rows of text have no such field."),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_fields_that_the_rows_do_not_have(fields, said, processes, tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", MAPPED_ROWS * 600)
    with pytest.raises(UsageError) as caught:
        read_dataset(path, tokenizer, fields=parse_fields(fields), processes=processes)
    assert said in str(caught.value)


def test_columns_that_others_take_the_name_of_are_listed(tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", MAPPED_ROWS)
    fields = {"prompt": "question", "completion": "answer"}
    notes = read_dataset(path, tokenizer, fields=fields).receipt.notes
    assert "columns not used, as --fields gives their names to others: prompt" in notes
    assert "fields not used: about, messages" in notes
    swapped = {"prompt": "completion", "completion": "prompt"}
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    assert not read_dataset(path, tokenizer, fields=swapped).receipt.notes


def test_a_column_of_some_rows_can_be_mapped(tokenizer, tmp_path):
    rows = [{"q": "hello", "a": "fine"}, {"q": "hello", "a": "fine", "about": "be kind"}]
    fields = {"instruction": "q", "output": "a", "system": "about"}
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert read_dataset(path, tokenizer, fields=fields).receipt.rows_read == 2


def test_mapped_fields_choose_among_formats(tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{**chat("a", "b"), "body": "a long answer"}])
    dataset = read_dataset(path, tokenizer, fields={"text": "body"})
    assert dataset.receipt.format == "text"
    assert "fields not used: messages" in dataset.receipt.notes


def test_chosen_rows_are_shown_with_their_side(folder, tokenizer):
    dataset = read_dataset(folder, tokenizer)
    shown = show_rows(dataset, tokenizer, first=1, locations=["valid.jsonl:3", "5"])
    assert [(row.place, row.side) for row in shown] == [
        ("train.jsonl:1", "trained"),
        ("valid.jsonl:3", "validation"),
        ("train.jsonl:5", "trained"),
        ("valid.jsonl:5", "validation"),
    ]
    assert [text for text, learned in shown[0].pieces if learned] == ["fine 0<|im_end|>"]
    for wrong in ("77", "valid.jsonl:99", "other.jsonl:1", "first"):
        with pytest.raises(UsageError):
            show_rows(dataset, tokenizer, locations=[wrong])


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def test_data_check_prints_receipt_and_rows(cli, tmp_path):
    rows = [{"question": f"hello {n}", "answer": "fine\x1b[2J"} for n in range(10)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    fields = ("--fields", "prompt=question,completion=answer")
    plain = cli("data", "check", file, *fields, "--show", "3", "--validation", "0.5", "--seed", "1")
    assert plain.code == 0
    assert "prompt/completion, rendered as a chat" in plain.out
    assert "10 = 5 trained + 5 validation + 0 dropped" in plain.out
    assert "rows.jsonl:3, " in plain.out
    assert "[fine\\x1b[2J<|im_end|>]" in plain.out
    colored = cli("data", "check", file, *fields, "--show", "3", "--color").out
    assert "\x1b[32mfine\\x1b[2J<|im_end|>\x1b[0m" in colored
    found = json.loads(cli("data", "check", file, *fields, "--json", "--rows", "1").out)
    assert found["rows_read"] == 10
    assert found["rows"][0]["pieces"][-2] == {"text": "fine\x1b[2J<|im_end|>", "learned": True}


def test_data_check_applies_the_length_rule(cli, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [*chats(0, 9), chat("hello", "fine " * 99)])
    refused = cli("data", "check", file, "--context", "64")
    assert (refused.code, "rows.jsonl:10" in refused.err) == (4, True)
    dropped = cli("data", "check", file, "--context", "64", "--long-rows", "drop", "--rows", "0")
    assert (dropped.code, "1 dropped" in dropped.out) == (0, True)


def test_a_dropped_row_says_why(cli, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [*chats(0, 9), chat("hello", "fine " * 99)])
    fitted = ("--context", "64", "--long-rows", "drop", "--show", "10,1")
    shown = cli("data", "check", file, *fitted).out
    assert "\nrows.jsonl:10, dropped: " in shown
    assert "tokens, more than the context of 64\n\nrows.jsonl:1, trained (" in shown
    first, second = json.loads(cli("data", "check", file, *fitted, "--json").out)["rows"]
    assert (first["side"], first["pieces"]) == ("dropped", [])
    assert first["because"].endswith("more than the context of 64")
    assert (second["side"], second["because"]) == ("trained", None)


def test_a_row_that_is_trained_too_says_so(folder, tokenizer):
    (shown,) = show_rows(read_dataset(folder, tokenizer), tokenizer, locations=["valid.jsonl:2"])
    assert (shown.side, shown.pieces) == ("dropped", [])
    assert "the same row is trained" in str(shown.because)


def test_a_length_rule_without_a_context_is_refused(cli, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", chats(0, 3))
    called = cli("data", "check", file, "--long-rows", "drop")
    assert (called.code, called.out) == (2, "")
    assert "Give --context too" in called.err


def test_a_missing_row_and_a_wrong_field_are_usage_errors(cli, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", chats(0, 3))
    assert cli("data", "check", file, "--show", "9").code == 2
    assert cli("data", "check", file, "--fields", "a=b").code == 2
