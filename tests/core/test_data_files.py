"""Every kind of file is read alike, and everything wrong is told with file and line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
from data_support import SHAPES, chat, write_model, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.data import Tokenizer, load_tokenizer, read_dataset, view_row
from edgetune.data.lines import LINE_LIMIT
from edgetune.data.problems import SHOWN, Problems
from edgetune.errors import DataError, ModelError


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("chatml"), SHAPES["chatml"]))


ROWS = [{"prompt": "hello", "completion": "fine, thank you"}, {"prompt": "é🎉", "completion": "ok"}]
TABLE = 'prompt,completion\nhello,"fine, thank you"\né🎉,ok\n'
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
CONTENTS = {
    "rows.jsonl": JSONL.encode(),
    "rows.ndjson": JSONL.encode(),
    "crlf.jsonl": b"\xef\xbb\xbf" + JSONL.replace("\n", "\r\n").encode(),
    "old_mac.jsonl": b"\xef\xbb\xbf" + JSONL.replace("\n", "\r").encode(),
    "old_mac.csv": TABLE.replace("\n", "\r").encode(),
    "old_mac.json": json.dumps(ROWS, indent=2).replace("\n", "\r").encode(),
    "old_mac.jsonl.gz": gzip.compress(JSONL.replace("\n", "\r").encode()),
    "unended.jsonl": JSONL.rstrip("\n").encode(),
    "blank.jsonl": ("\n  \n" + JSONL + "\n\n").encode(),
    "rows.json": json.dumps(ROWS, indent=2).encode(),
    "lines.json": JSONL.encode(),
    "rows.csv": TABLE.encode(),
    "excel.csv": b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode(),
    "blank.csv": b"\n" + b" \r\n\n" + TABLE.encode(),
    "padded.json": b" \n" * 100_000 + json.dumps(ROWS).encode(),
    "padded_lines.json": b" \n" * 100_000 + JSONL.encode(),
    "semicolons.csv": TABLE.replace('"fine, thank you"', "fine; thank you")
    .replace(",", ";")
    .replace("fine; thank you", '"fine, thank you"')
    .encode(),
    "index.csv": b",prompt,completion\n"
    + "".join(f"{n},{line}\n" for n, line in enumerate(TABLE.splitlines()[1:])).encode(),
    "bars.csv": TABLE.replace(",", "|").replace("fine|", "fine,").encode(),
    "tabs.csv": TABLE.replace(",", "\t").replace("fine\t", "fine,").encode(),
    "pretty.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "half_pretty.json": "".join(
        json.dumps(row, indent=2).replace("{\n ", "{", 1) + "\r\n" for row in ROWS
    ).encode(),
    "rows.tsv": b"prompt\tcompletion\nhello\tfine, thank you\n" + "é🎉\tok\n".encode(),
    "ROWS.JSONL.GZ": gzip.compress(JSONL.encode()),
}


@pytest.mark.parametrize("name", list(CONTENTS))
def test_the_same_rows_from_every_kind_of_file(name, tokenizer, tmp_path):
    expected = read_dataset(write_rows(tmp_path / "expected.jsonl", ROWS), tokenizer, validation=0)
    (tmp_path / name).write_bytes(CONTENTS[name])
    dataset = read_dataset(tmp_path / name, tokenizer, validation=0)
    assert [list(tokens) for tokens, _ in dataset.train] == [list(t) for t, _ in expected.train]
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.receipt.files[0].rows == 2


def test_optional_kinds_of_files(tokenizer, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    packed = zstandard.compress(JSONL.encode())
    (tmp_path / "rows.jsonl.zst").write_bytes(packed)
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    first, second = (read_dataset(tmp_path / name, tokenizer, validation=0)
                     for name in ("rows.jsonl.zst", "rows.parquet"))  # fmt: skip
    assert first.fingerprint == second.fingerprint
    (tmp_path / "cut.jsonl.zst").write_bytes(packed[:-9])
    with pytest.raises(DataError, match="cannot be read to its end"):
        read_dataset(tmp_path / "cut.jsonl.zst", tokenizer)


FORMATS = {
    "messages": chat("hello", "fine"),
    "conversations": {
        "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "fine"}]
    },
    "prompt/completion": {"prompt": "hello", "completion": "fine"},
    "instruction/input/output": {"instruction": "hello", "input": "", "output": "fine"},
    "text": {"text": "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nfine<|im_end|>\n"},
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_formats_say_the_same_and_are_named(name, tokenizer, tmp_path):
    row = {**FORMATS[name], "id": 7}
    dataset = read_dataset(write_rows(tmp_path / "rows.jsonl", [row]), tokenizer)
    (view,) = [view_row(example, tokenizer) for example in dataset.train]
    assert "".join(text for text, _ in view) == FORMATS["text"]["text"]
    assert dataset.receipt.format == name
    assert "fields not used: id" in dataset.receipt.notes


def test_content_in_parts_and_prompts_of_messages(tokenizer, tmp_path):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    user, assistant = ({"role": "user", "content": parts}, {"role": "assistant", "content": "fine"})
    rows = [{"messages": [user, assistant]}, {"messages": [user, assistant], "prompt": "x"}]
    first = read_dataset(write_rows(tmp_path / "rows.jsonl", rows), tokenizer, validation=0)
    turns = [{"prompt": [user], "completion": [assistant]}]
    other = read_dataset(write_rows(tmp_path / "turns.jsonl", turns), tokenizer, validation=0)
    plain = read_dataset(write_rows(tmp_path / "p.jsonl", [FORMATS["messages"]]), tokenizer)
    for tokens, _ in [*first.train, *other.train]:
        assert list(tokens) == list(plain.train[0][0])


def test_columns_can_be_mapped(tokenizer, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "hello", "answer": "fine"}])
    fields = {"prompt": "question", "completion": "answer"}
    dataset = read_dataset(path, tokenizer, fields=fields)
    assert dataset.receipt.format == "prompt/completion"
    with pytest.raises(DataError, match=r"rows.jsonl:1: Found the fields answer, question\."):
        read_dataset(path, tokenizer)


def test_an_object_over_several_lines_is_one_row(tokenizer, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(chat("hello", "fine"), indent=4))
    dataset = read_dataset(tmp_path / "one.json", tokenizer, validation=0)
    assert dataset.receipt.rows_read == 1
    assert dataset.train.place(0) == "one.json row 1"
    (tmp_path / "other.json").write_text(json.dumps({"a": list(range(700))}, indent=4))
    with pytest.raises(DataError, match=r"Problems in the data: 1\n  other\.json row 1: Found"):
        read_dataset(tmp_path / "other.json", tokenizer)


def test_a_cell_of_a_table_can_have_lines(tokenizer, tmp_path):
    (tmp_path / "rows.csv").write_bytes(b'prompt,completion\na,"b\r\nc"\nd,e\n')
    dataset = read_dataset(tmp_path / "rows.csv", tokenizer, validation=0)
    learned = [
        "".join(text for text, on in view_row(row, tokenizer) if on) for row in dataset.train
    ]
    assert learned == ["b\nc<|im_end|>", "e<|im_end|>"]
    assert [dataset.train.place(index) for index in (0, 1)] == ["rows.csv:2", "rows.csv:4"]


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_a_text_file_has_a_document_between_blank_lines(ends, tokenizer, tmp_path):
    (tmp_path / "book.txt").write_bytes(b"one\r\ntwo\r\n\r\n \r\nthree\r\n".replace(b"\r\n", ends))
    dataset = read_dataset(tmp_path / "book.txt", tokenizer, validation=0)
    texts = ["".join(text for text, _ in view_row(row, tokenizer)) for row in dataset.train]
    assert texts == ["one\ntwo<|im_end|>", "three<|im_end|>"]
    assert dataset.train.place(1) == "book.txt:5"


def test_a_folder_is_read_in_order(tokenizer, tmp_path):
    (tmp_path / "deep").mkdir()
    write_rows(tmp_path / "deep" / "b.jsonl", [chat("b", "two")])
    write_rows(tmp_path / "a.jsonl", [chat("a", "one")])
    (tmp_path / "picture.png").write_bytes(b"x")
    dataset = read_dataset(tmp_path, tokenizer, validation=0)
    assert [file.name for file in dataset.receipt.files] == ["a.jsonl", "deep/b.jsonl"]
    assert dataset.train.place(1) == "deep/b.jsonl:1"
    assert "files not read: picture.png" in dataset.receipt.notes


GOOD = json.dumps(chat("hello", "fine")).encode() + b"\n"
DEEP = b"[" * 5000 + b"]" * 5000
BAD_LINES = {
    "broken JSON": (b'{"messages": [}', "not JSON: Expecting value at column 15"),
    "cut JSON": (b'{"messages": [', "not JSON"),
    "deep": (DEEP, "nested too deeply"),
    "deep inside": (b'{"messages": ' + DEEP + b"}", "nested too deeply"),
    "deep but read": (
        b'{"messages": [{"role": ' + b"[" * 400 + b"]" * 400 + b', "content": "a"}]}',
        "Message 1 has the role",
    ),
    "huge number": (b'{"text": ' + b"9" * 5000 + b"}", "not JSON"),
    "a number": (b"17", "found a number"),
    "a list": (b"[1, 2]", "found a list"),
    "null": (b"null", "found null"),
    "null messages": (b'{"messages": null}', "The field messages is null"),
    "null messages beside a text": (b'{"messages": null, "text": "a"}', "The field messages is null"),
    "null completion": (b'{"prompt": "a", "completion": null}', "The field completion is null"),
    "null alone": (b'{"prompt": null, "id": 1}', "Found the fields id, prompt (null)."),
    "null content": (b'{"messages": [{"role": "user", "content": null}]}', "Message 1 (user) is null"),
    "null role": (b'{"messages": [{"role": null, "content": "a"}]}', "Message 1 has null as its role"),
    "no fields": (b"{}", "Found the fields none"),
    "null fields": (b'{"text": null, "id": 1}', "The field text is null"),
    "unknown fields": (b'{"question": "a"}', "Found the fields question"),
    "other format": (b'{"text": "a"}', "has the fields of text, the rows before it those of"),
    "NUL": (b'{"text": "a\0"}', "NUL bytes in this line"),
    "not UTF-8": (b'{"text": "\xff\xfe"}', "not UTF-8"),
    "half a character": (
        json.dumps(chat("a\ud800", "b")).encode(),
        r"half a character ('\ud800'",
    ),
    "too long": (b'{"text": "' + b"a" * LINE_LIMIT + b'"}', "longer than 16.8 MB"),
    "messages no list": (b'{"messages": "hello"}', "must be a list with at least one message"),
    "no messages": (b'{"messages": []}', "must be a list with at least one message"),
    "message no object": (b'{"messages": ["hello"]}', "Message 1 is not an object"),
    "no role": (b'{"messages": [{"content": "a"}]}', "Message 1 has no role"),
    "unknown role": (b'{"messages": [{"role": "boss", "content": "a"}]}', "has the role 'boss'"),
    "role no text": (b'{"messages": [{"role": ["user"], "content": "a"}]}', "has the role"),
    "content a number": (b'{"messages": [{"role": "user", "content": 0}]}', "is not text"),
    "an image": (
        b'{"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}',
        "is not text",
    ),
    "empty turn": (b'{"messages": [{"role": "user", "content": " \\n"}]}', "Message 1 (user) is empty"),
    "no content": (b'{"messages": [{"role": "assistant"}]}', "Message 1 (assistant) is empty"),
    "no assistant": (b'{"messages": [{"role": "user", "content": "a"}]}', "nothing to learn"),
    "odd weight": (
        b'{"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}',
        "neither 0 nor 1",
    ),
    "a key twice": (b'{"text": "a", "text": "b"}', "The key 'text' appears twice"),
    "a key twice, spaced": (b'{"x":1, "text" : "a", "text"\t:"b"}', "'text' appears twice"),
    "a key twice within": (
        b'{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}',
        "The key 'role' appears twice",
    ),
    "tools no list": (
        b'{"tools": 3, "messages": [{"role": "assistant", "content": "a"}]}',
        "tools must be a list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD_LINES))
def test_a_bad_line_is_named(name, tokenizer, tmp_path):
    line, expected = BAD_LINES[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError) as caught:
        read_dataset(path, tokenizer)
    assert caught.value.exit_code == 4
    assert "rows.jsonl:2: " in str(caught.value)
    assert expected in str(caught.value)
    assert "rows.jsonl:3" not in str(caught.value)


def test_a_weight_that_loss_on_all_would_ignore_is_refused(tokenizer, tmp_path):
    row = chat("hello", "bad", "hello", "good")
    row["messages"][1]["weight"] = 0
    path = write_rows(tmp_path / "rows.jsonl", [chat("hello", "fine"), row])
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: Message 2 has weight 0, and --loss-on all"
    ):
        read_dataset(path, tokenizer, loss_on="all")
    assert read_dataset(path, tokenizer).receipt.rows_read == 2
    row["messages"][1]["weight"] = 1
    write_rows(path, [row])
    assert read_dataset(path, tokenizer, loss_on="all").receipt.rows_read == 1


ODD_ROWS = [
    chat("\0", "b"),
    chat("a", "b", "c", system=""),
    {"messages": [{"role": "assistant", "content": "b", "name": None}], "tools": [], "big": 9**99},
    {**chat("a", "b"), "not a number": float("nan")},
]


@pytest.mark.parametrize("row", ODD_ROWS)
def test_an_odd_row_is_accepted(row, tokenizer, tmp_path):
    assert len(read_dataset(write_rows(tmp_path / "rows.jsonl", [row]), tokenizer).train) == 1


def refusal(path: Path, tokenizer: Tokenizer) -> str | None:
    """What reading a file is refused with, None if it is not."""
    try:
        read_dataset(path, tokenizer)
    except DataError as error:
        return str(error)
    return None


def test_all_bad_lines_are_told_at_once(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(GOOD if i % 2 else b"{\n" for i in range(50)))
    with pytest.raises(DataError) as caught:
        read_dataset(path, tokenizer)
    lines = str(caught.value).splitlines()
    assert "25" in lines[0]
    assert [line.split(":")[1] for line in lines[1:9]] == [str(n) for n in range(1, 17, 2)]
    assert lines[9].strip() == "and 17 more."


BAD_FILES = {
    "rows.xlsx": (b"x", "not of a known kind. Known: .jsonl"),
    "empty.jsonl": (b"", "has no rows"),
    "blank.jsonl": (b"\n\n", "has no rows"),
    "utf16.jsonl": ("\ufeff{}".encode("utf-16-le"), "UTF-16. Save it as UTF-8"),
    "utf16.txt": ("hello".encode("utf-16-le"), "utf16.txt:1: The file is full of NUL bytes"),
    "cut.json": (b'[{"text": "a"}, {"text": "b', "not JSON: Unterminated string starting in row 2"),
    "utf16.csv": (
        "text\nhello\n".encode("utf-16-be"),
        "The file is full of NUL bytes: it is UTF-16",
    ),
    "utf16.json": ('[{"text": "hello"}]'.encode("utf-16-le"), "there are NUL bytes in row 1"),
    "nul.json": (b'[{"text": "a"}, {"text": "\0b"}]', "there are NUL bytes in row 2"),
    "nul.txt": (b"hello\n\nhe\0llo\n", "nul.txt:3: There are NUL bytes in this line"),
    "nul.csv": (b"text\nhello\nhe\0llo\n", "nul.csv:3: There are NUL bytes in this line"),
    "row.json": (
        b"[" + b'{"text": "a"},\n' * 9000 + b'{"text": "\xff"}]',
        "is not UTF-8 in row 9001",
    ),
    "cut.jsonl.gz": (gzip.compress(GOOD * 1000)[:60], "cannot be read to its end"),
    "fake.jsonl.gz": (GOOD, "cannot be read to its end"),
    "broken.json": (b'[{"text": "a"},\n{', "not JSON: Expecting property name"),
    "deep.json": (DEEP, "nested too deeply"),
    "binary.json": (b"[\xff", "is not UTF-8 in row 1"),
    "empty.json": (b"[]", "has no rows"),
    "twice.json": (
        b'[{"text": "a"},\n{"text": "b", "text": "c"}, {"text": "d"}]',
        "twice.json row 2: The key 'text' appears twice",
    ),
    "quote.csv": (b'prompt,completion\na,b\n"c,d\n', "quote.csv:3: The row that begins here"),
    "cr.csv": (
        b"text\nhello\nhe\rllo\n",
        "cr.csv:3: The row that begins here cannot be read: a CR is",
    ),
    "columns.csv": (b"prompt,completion\na,b\nc\n", "columns.csv:3: Found 1 columns where"),
    "header.csv": (b"prompt,prompt\na,b\n", "line 1 must name every column once"),
    "late.csv": (b"\n\nprompt,prompt\na,b\n", "line 3 must name every column once"),
    "pretty.jsonl": (
        b'{\n  "text": "a"\n}\n',
        "quotes at column 2. The line ends before the row does. Put each row on one line,",
    ),
    "list.jsonl": (
        b'[\n  {"text": "a"}\n]\n',
        "list.jsonl:1: This is not JSON: Expecting value at",
    ),
    "string.jsonl": (b'{"text": "a\n', "string starting at column 10. The line ends before"),
    "twice.jsonl": (
        b'{"text": "a"} {"text": "b"}',
        "twice.jsonl:1: This is not JSON: Extra data at",
    ),
    "rows.parquet.gz": (gzip.compress(b"PAR1"), "rows.parquet.gz is packed Parquet"),
    "rows.Parquet.ZST": (b"PAR1", "rows.Parquet.ZST is packed Parquet"),
    "cut_pretty.json": (
        b'{\n  "text": "a"\n}\n{\n  "text": "b',
        "not JSON: Unterminated string starting in row 2",
    ),
    "wrapped.json": (b'{\n  "data": [\n    {"text": "a"}\n  ]\n}', "Found the fields data."),
    "unnamed.csv": (b"prompt,,completion\na,b,c\n", "line 1 must name every column once"),
    "only.csv": (b"prompt,completion\n", "has no rows"),
    "wide.csv": (b"prompt,completion\na," + b"b" * (LINE_LIMIT // 2) * 3, "longer than"),
    "rows.parquet": (b"PAR1", "rows.parquet"),
}


@pytest.mark.parametrize("name", list(BAD_FILES))
def test_a_bad_file_is_explained(name, tokenizer, tmp_path):
    content, expected = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path / name, tokenizer)
    assert expected in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl.zst"])
def test_a_missing_package_is_named(name, tokenizer, tmp_path, monkeypatch):
    for package in ("pyarrow", "pyarrow.parquet", "zstandard"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=f"{name}: It needs the package .*: pip install"):
        read_dataset(tmp_path / name, tokenizer)


def test_missing_and_empty_places_are_explained(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*nowhere\.jsonl"):
        read_dataset(tmp_path / "nowhere.jsonl", tokenizer)
    (tmp_path / "notes.odt").write_text("x")
    with pytest.raises(DataError, match="no file of a known kind"):
        read_dataset(tmp_path, tokenizer)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
        | st.sampled_from(["user", "assistant", "<|im_end|>"]),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "text", "prompt", "completion", "tools"]),
            inner,
            max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_json_is_accepted_or_refused_by_line(tokenizer, tmp_path_factory, value):
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    path.write_text(json.dumps(value) + "\n")
    refused = refusal(path, tokenizer)
    assert refused is None or "rows.jsonl:1: " in refused


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    content=st.binary(max_size=60),
    suffix=st.sampled_from(["jsonl", "json", "csv", "txt", "jsonl.gz"]),
)
def test_any_bytes_are_accepted_or_refused(tokenizer, tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("any") / f"rows.{suffix}"
    path.write_bytes(content)
    refused = refusal(path, tokenizer)
    assert refused is None or "rows." in refused


def test_a_missing_or_damaged_tokenizer_is_explained(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no tokenizer. .*found config.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{bad")
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(tmp_path)
    write_model(tmp_path, SHAPES["chatml"])
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match="template is broken"):
        load_tokenizer(tmp_path)


def test_code_in_a_model_folder_is_never_run(tmp_path):
    folder = write_model(tmp_path, SHAPES["chatml"])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "evil.Evil"]}
    config["tokenizer_class"] = "Evil"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match="code from the model's folder, which is never run"):
        load_tokenizer(folder)


def test_problems_keep_the_first_and_the_count():
    problems = Problems()
    for number in range(10**5):
        problems.add(f"a:{number}", "bad")
    assert (len(problems.shown), problems.count) == (SHOWN, 10**5)
