"""Texts with labels: read, named, masked, counted, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_support import SHAPES, write_model, write_rows

from edgetune.cautions import label_cautions
from edgetune.data import Dataset, Tokenizer, load_tokenizer, read_dataset
from edgetune.data.labels import MOST_LABELS, LabelSet
from edgetune.errors import DataError, UsageError

NAMES = ("bad news", "good news")
ROWS = [{"text": f"hello world {n}", "label": n % 2} for n in range(20)]


@pytest.fixture(scope="module", params=["chatml", "llama2", "llama3", "thinking", "none"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    return load_tokenizer(write_model(folder, SHAPES[request.param]))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("chatml"), SHAPES["chatml"]))


def read(path: Path, tokenizer: Tokenizer, **options: Any) -> Dataset:
    return read_dataset(path, tokenizer, validation=0, **options)


def learned(dataset: Dataset, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(tokens[mask]) for tokens, mask in dataset.train]


def test_the_label_and_its_end_are_learned_and_nothing_else(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    names = write_rows(
        tmp_path / "n.jsonl", [{**row, "label": NAMES[row["label"]]} for row in ROWS]
    )
    answers = [{"prompt": row["text"], "completion": NAMES[row["label"]]} for row in ROWS]
    if not tokenizer.has_template:
        answers = [{**row, "prompt": row["prompt"] + "\n"} for row in answers]
    dataset = read(names, tokenizer)
    expected = read(write_rows(tmp_path / "a.jsonl", answers), tokenizer)
    for (tokens, mask), (others, other) in zip(dataset.train, expected.train, strict=True):
        assert tokens.tolist() == others.tolist()
        assert mask.tolist() == other.tolist()
    for row, text in zip(ROWS, learned(dataset, tokenizer), strict=True):
        assert NAMES[row["label"]] in text
        assert "hello" not in text
        assert text.rstrip().endswith(tokenizer.end_texts)


def test_numbers_have_names_wherever_they_are_said(chatml: Tokenizer, tmp_path: Path) -> None:
    named = read(
        write_rows(tmp_path / "n.jsonl", [{**row, "label": NAMES[row["label"]]} for row in ROWS]),
        chatml,
    )
    expected = learned(named, chatml)
    numbers = write_rows(tmp_path / "numbers.jsonl", ROWS)
    texts = write_rows(
        tmp_path / "texts.jsonl", [{**row, "label": str(row["label"])} for row in ROWS]
    )
    bools = write_rows(tmp_path / "b.jsonl", [{**row, "label": row["label"] == 1} for row in ROWS])
    floats = write_rows(
        tmp_path / "f.jsonl", [{**row, "label": float(row["label"])} for row in ROWS]
    )
    for path in (numbers, texts, bools, floats):
        found = read(path, chatml, label_names=NAMES)
        assert learned(found, chatml) == expected
        assert found.receipt.label_names == NAMES
        assert found.receipt.labels["trained"] == {NAMES[0]: 10, NAMES[1]: 10}
    declared = tmp_path / "declared"
    declared.mkdir()
    write_rows(declared / "rows.jsonl", ROWS)
    feature = {"names": list(NAMES), "_type": "ClassLabel"}
    (declared / "dataset_info.json").write_text(json.dumps({"features": {"label": feature}}))
    assert learned(read(declared, chatml), chatml) == expected
    assert learned(read(declared / "rows.jsonl", chatml), chatml) == expected
    assert read(declared, chatml, label_names=("x", "y")).receipt.label_names == ("x", "y")
    assert learned(read(numbers, chatml), chatml)[:2] == ["0<|im_end|>", "1<|im_end|>"]


def test_names_that_are_declared_in_parquet(chatml: Tokenizer, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {name: [row[name] for row in ROWS] for name in ("text", "label")}
    feature = {"names": list(NAMES), "_type": "ClassLabel"}
    info = {"info": {"features": {"label": feature}}}
    table = arrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet", chatml).receipt.label_names == NAMES


def test_csv_and_other_names_of_columns(chatml: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("sentence,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS))
    with pytest.raises(DataError, match="--fields text=sentence"):
        read(path, chatml)
    found = read(path, chatml, fields={"text": "sentence"}, label_names=NAMES)
    assert found.receipt.format == "text/label"
    assert found.receipt.labels["trained"] == {NAMES[0]: 10, NAMES[1]: 10}


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (2, {"label_names": NAMES}, "label 2 has no name: there are 2, for 0 to 1"),
        (-1, {"label_names": NAMES}, "label -1 has no name"),
        ("great news", {"label_names": NAMES}, "is not one of --label-names: bad news, good news"),
        ("  ", {}, "label is empty"),
        (0.5, {}, "must be a text or a whole number; found 0.5"),
        (["a"], {}, "must be a text or a whole number"),
        (None, {}, "label is null|label beside this text is null"),
    ],
)
def test_labels_that_are_none(
    label: Any, options: Any, message: str, chatml: Tokenizer, tmp_path: Path
) -> None:
    rows = [{"text": "hello", "label": 0}, {"text": "world", "label": label}]
    with pytest.raises(DataError, match=rf"(?s)rows.jsonl:2.*({message})"):
        read(write_rows(tmp_path / "rows.jsonl", rows), chatml, **options)
    with pytest.raises(DataError, match=rf"(?s)first.jsonl:1.*({message})"):
        read(write_rows(tmp_path / "first.jsonl", rows[::-1]), chatml, **options)


def test_settings_that_make_no_sense(chatml: Tokenizer, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    for options in ({"loss_on": "all"}, {"long_rows": "cut"}, {"long_rows": "split"}):
        with pytest.raises(UsageError, match=r"would (learn the texts|cut off labels)"):
            read(rows, chatml, **options)
    plain = write_rows(tmp_path / "plain.jsonl", [{"prompt": "a", "completion": "b"}] * 2)
    with pytest.raises(UsageError, match="--label-names is for rows of text and label"):
        read(plain, chatml, label_names=NAMES)
    many = [{"text": "hello", "label": f"label {n}"} for n in range(MOST_LABELS + 1)]
    with pytest.raises(DataError, match="more than 1,000 different labels"):
        read(write_rows(tmp_path / "many.jsonl", many), chatml)


def test_the_receipt_counts_labels_on_both_sides(chatml: Tokenizer, tmp_path: Path) -> None:
    rows = [{"text": f"hello {n}", "label": "rare" if n % 25 == 0 else "usual"} for n in range(100)]
    dataset = read_dataset(write_rows(tmp_path / "rows.jsonl", rows), chatml, validation=0.2)
    labels = dataset.receipt.labels
    total = {name: sum(side.get(name, 0) for side in labels.values()) for name in ("rare", "usual")}
    assert total == {"rare": 4, "usual": 96}
    assert sum(labels["validation"].values()) == dataset.receipt.rows_validation > 0
    text = "\n".join(dataset.receipt.lines())
    assert f"usual {labels['trained']['usual']}" in text
    assert "of the rows are usual" in text


def test_a_label_that_begins_another_one_is_another_answer(tokenizer: Tokenizer) -> None:
    labels = LabelSet.of(tokenizer, ("good", "good news", "bad"))
    assert len(set(labels.answers)) == 3
    shorter, longer, _ = labels.answers
    assert longer[: len(shorter)] != shorter  # its end is a part of it


def test_what_counts_let_one_expect() -> None:
    assert label_cautions({}, named=False) == ()
    (one,) = label_cautions({"x": 30}, named=False)
    assert "nothing to tell apart" in one
    most, rare = label_cautions({"x": 95, "y": 4}, named=False)
    assert most.startswith("96% of the rows are x")
    assert "y. Expect little" in rare
    (numbers,) = label_cautions({"0": 50, "1": 50}, named=False)
    assert "--label-names" in numbers
    assert label_cautions({"0": 50, "1": 50}, named=True) == ()
