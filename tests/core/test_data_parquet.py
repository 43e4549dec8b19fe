"""Every type of Parquet column is converted, or refused by the name of the column."""

from __future__ import annotations

from contextlib import suppress
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_support import SHAPES, WITH_TOOLS, chat, write_model, write_rows

from edgetune.data import Tokenizer, load_tokenizer, read_dataset
from edgetune.errors import DataError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("chatml"), SHAPES["chatml"]))


def written(path: Path, **columns: Any) -> Path:
    parquet.write_table(arrow.table(columns), path)
    return path


TEXT = arrow.array(["hello world", "a long answer"])
MESSAGES = arrow.array([chat("hello", "fine")["messages"], chat("hello", "you")["messages"]])
NOT_UTF8 = arrow.Array.from_buffers(
    arrow.string(), 2,
    [None, arrow.py_buffer(np.array([0, 1, 2], np.int32)), arrow.py_buffer(b"\xffa")],
)  # fmt: skip


def structs(*columns: Any, names: list[str]) -> Any:
    return arrow.StructArray.from_arrays(columns, names=names)


OTHERS = {
    "timestamp": arrow.array([1, 2**61 + 1], arrow.timestamp("ns")),
    "timestamp in a zone": arrow.array([1, 2], arrow.timestamp("us", "UTC")),
    "late": arrow.array([2**53, 1], arrow.timestamp("ms")),
    "time": arrow.array([1, 2], arrow.time64("ns")),
    "date": arrow.array([date(2020, 1, 1)] * 2),
    "late date": arrow.array([2**31 - 1, 2], arrow.date32()),
    "duration": arrow.array([1, 2], arrow.duration("ns")),
    "decimal": arrow.array([Decimal("1.50"), None], arrow.decimal128(38, 5)),
    "half": arrow.array(np.array([1, 2], np.float16)),
    "bytes": arrow.array([b"\xff\xd8", b"\0"]),
    "categories": arrow.array(["a", "b"]).dictionary_encode(),
    "map": arrow.array([[("a", 1)], []], arrow.map_(arrow.string(), arrow.int32())),
    "nothing": arrow.nulls(2),
    "times within": structs(TEXT, arrow.array([1, 2], arrow.timestamp("ns")), names=["a", "b"]),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_a_column_that_is_not_trained_may_be_of_any_type(name, tokenizer, tmp_path):
    file = written(tmp_path / "rows.parquet", text=TEXT, other=OTHERS[name])
    dataset = read_dataset(file, tokenizer, validation=0)
    plain = read_dataset(written(tmp_path / "plain.parquet", text=TEXT), tokenizer, validation=0)
    assert dataset.fingerprint == plain.fingerprint
    assert dataset.receipt.notes == ("fields not used: other",)


TRAINED = {
    "large text": {"text": TEXT.cast(arrow.large_string())},
    "categories": {"text": TEXT.dictionary_encode()},
    "messages": {"messages": MESSAGES},
    "messages in a large list": {"messages": MESSAGES.cast(arrow.large_list(MESSAGES.type.value_type))},
    "messages with times": {"messages": arrow.ListArray.from_arrays(
        arrow.array([0, 2, 4]),
        structs(
            arrow.array(["user", "assistant"] * 2).dictionary_encode(),
            arrow.array(["hello", "fine", "hello", "you"]),
            arrow.array([1, 2, 3, 4], arrow.timestamp("ns")),
            names=["role", "content", "at"],
        ),
    )},
}  # fmt: skip


@pytest.mark.parametrize("name", list(TRAINED))
def test_what_is_trained_may_be_stored_in_several_ways(name, tokenizer, tmp_path):
    dataset = read_dataset(written(tmp_path / "rows.parquet", **TRAINED[name]), tokenizer)
    plain = {"text": TEXT} if "text" in TRAINED[name] else {"messages": MESSAGES}
    expected = read_dataset(written(tmp_path / "plain.parquet", **plain), tokenizer)
    assert dataset.fingerprint == expected.fingerprint


def test_dates_and_decimals_are_read_as_text(tokenizer, tmp_path):
    columns = {"prompt": OTHERS["date"], "completion": arrow.array([Decimal("1.50"), Decimal(2)])}
    dataset = read_dataset(written(tmp_path / "rows.parquet", **columns), tokenizer, validation=0)
    text = tokenizer.decode(dataset.train[0][0].tolist())
    assert "2020-01-01" in text
    assert "1.50" in text


REFUSED = {
    "bytes": (
        {"text": arrow.array([b"a", b"b"])},
        "row 1: The field text must be text; found bytes",
    ),
    "not UTF-8": (
        {"text": TEXT, "other": NOT_UTF8},
        "the column other is not UTF-8 in rows 1 to 2",
    ),
    "no zone": (
        {"text": TEXT, "other": arrow.array([1, 2], arrow.timestamp("us", "No/Where"))},
        "the column other is timestamp[us, tz=No/Where], which cannot be converted",
    ),
    "a field twice": (
        {"text": TEXT, "other": structs(TEXT, TEXT, names=["a", "a"])},
        "the column other is struct<a: string, a: string>, which cannot be converted",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_column_that_cannot_be_read_is_named(name, tokenizer, tmp_path):
    columns, said = REFUSED[name]
    with pytest.raises(DataError) as caught:
        read_dataset(written(tmp_path / "rows.parquet", **columns), tokenizer)
    assert "rows.parquet" in str(caught.value)
    assert said in str(caught.value)


CALLS = [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}},
    {"type": "function", "function": {"name": "clock", "arguments": {"zone": {"name": "UTC"}}}},
]
SCHEMAS = [
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    {"type": "object", "properties": {"zone": {"type": "object"}}},
]


def calling(number: int) -> dict[str, Any]:
    call = CALLS[number]
    tool = {"name": call["function"]["name"], "parameters": SCHEMAS[number]}
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    return {"messages": turns, "tools": [{"type": "function", "function": tool}]}


def saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as `datasets` does, by the ending of the path."""
    table = arrow.Table.from_pylist(rows)
    match path.suffix:
        case ".parquet":
            parquet.write_table(table, path)
        case ".arrow":
            with arrow.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=1)
        case _:
            with arrow.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
def test_what_a_struct_is_padded_with_is_not_learned(kind, tmp_path):
    """Every struct of a column has the fields of all of them."""
    tokenizer = load_tokenizer(write_model(tmp_path / "model", WITH_TOOLS))
    rows = [calling(0), calling(1)]
    file = saved(tmp_path / f"rows.{kind}", rows)
    if kind == "feather":
        file = file.rename(tmp_path / "rows.arrow")
    plain = read_dataset(write_rows(tmp_path / "rows.jsonl", rows), tokenizer, validation=0)
    found = read_dataset(file, tokenizer, validation=0)
    assert "null" not in tokenizer.decode(plain.train[0][0].tolist())
    assert found.fingerprint == plain.fingerprint


def test_a_folder_that_datasets_saved_is_read(tokenizer, tmp_path):
    for split, rows in (("train", ["one", "two"]), ("test", ["three"])):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        saved(folder / "data-00000-of-00001.arrow", [{"text": text} for text in rows])
        saved(folder / "cache-0123456789.arrow", [{"text": "an intermediate result"}])
        (folder / "dataset_info.json").write_text('{"features": {}}')
        (folder / "state.json").write_text('{"_fingerprint": "0"}')
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    dataset = read_dataset(tmp_path / "saved", tokenizer, validation=0)
    assert [(f.name, f.rows) for f in dataset.receipt.files] == [
        ("train/data-00000-of-00001.arrow", 2)
    ]
    assert any("state.json" in note for note in dataset.receipt.notes)


def test_a_damaged_arrow_file_is_explained(tokenizer, tmp_path):
    whole = saved(tmp_path / "rows.arrow", [{"text": "hello"}] * 50).read_bytes()
    for content in (whole[: len(whole) // 2], b"ARROW1\0\0", b"nothing of it", b""):
        (tmp_path / "rows.arrow").write_bytes(content)
        with pytest.raises(DataError, match=r"rows\.arrow"):
            read_dataset(tmp_path / "rows.arrow", tokenizer)


def test_an_arrow_file_with_a_wrong_byte_is_accepted_or_refused(tokenizer, tmp_path):
    """Lengths and places in it are believed by the library that reads it, unless they are checked."""
    path = saved(tmp_path / "rows.arrow", [chat("hello", f"fine {n}") for n in range(4)])
    whole = path.read_bytes()
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with suppress(DataError):
            read_dataset(path, tokenizer)


def test_two_columns_of_one_name_are_refused(tokenizer, tmp_path):
    table = arrow.Table.from_arrays([TEXT, TEXT], names=["text", "text"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: .*different names; found twice: text\."):
        read_dataset(tmp_path / "rows.parquet", tokenizer)
