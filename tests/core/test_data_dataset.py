"""Every row is accounted for: split, fitted, dropped, counted, and shown."""

from __future__ import annotations

import json
import os
from functools import partial

import numpy as np
import pytest
from data_support import SHAPES, chat, columns_from, examples_from, write_model, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.data import Batches, Dataset, Examples, Tokenizer, load_tokenizer, read_dataset
from edgetune.data.fit import fit
from edgetune.data.row_digests import Hashes, count_duplicates, held_out, seeded
from edgetune.data.workers import encode_in_processes
from edgetune.errors import DataError, OutOfMemoryError, UsageError

checked = settings(derandomize=True, deadline=None, max_examples=60)
token_rows = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=12), max_size=20
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("llama3"), SHAPES["llama3"]))


Rows = list[list[tuple[int, bool]]]


def apart(rows: Rows) -> list[tuple[list[int], list[bool]]]:
    return [([token for token, _ in row], [on for _, on in row]) for row in rows]


def built(rows: Rows) -> Examples:
    return examples_from(apart(rows))


def hashes_of(rows: Rows, seed: int) -> Hashes:
    return seeded(columns_from(apart(rows)).digests, seed)


def plain(examples: Examples) -> list[tuple[list[int], list[bool]]]:
    return [(tokens.tolist(), mask.tolist()) for tokens, mask in examples]


@checked
@given(token_rows, st.data())
def test_examples_are_the_rows_that_went_in(rows, data):
    examples = built(rows)
    expected = [([t for t, _ in row], [False, *(on for _, on in row[1:])]) for row in rows]
    assert plain(examples) == expected
    assert examples.lengths.tolist() == [len(tokens) for tokens, _ in expected]
    assert examples.loss_tokens.tolist() == [sum(mask) for _, mask in expected]
    order = data.draw(st.lists(st.sampled_from(range(len(rows))))) if rows else []
    taken = examples.take(np.array(order, dtype=np.int64))
    assert plain(taken) == [expected[index] for index in order]
    assert [taken.place(i) for i in range(len(order))] == [f"rows.jsonl:{i + 1}" for i in order]
    with pytest.raises(IndexError):
        examples[len(rows)]


@checked
@given(token_rows, st.integers(0, 3), st.floats(0, 0.99))
def test_duplicates_are_never_on_both_sides(rows, seed, share):
    examples = built(rows + rows[::2])
    hashes = hashes_of(rows + rows[::2], seed)
    held = held_out(hashes, share)
    splits = [{str(row) for row, on in zip(plain(examples), held, strict=True) if on is np.bool_(s)}
             for s in (True, False)]  # fmt: skip
    distinct = {str(row) for row in plain(examples)}
    assert not splits[0] & splits[1]
    assert count_duplicates(hashes) == len(examples) - len(distinct)
    if share and len(distinct) > 1:
        assert len(splits[0]) == min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    else:
        assert not splits[0]


def test_the_split_depends_on_content_and_seed_alone():
    rows = [[(index, True)] * 3 for index in range(40)]
    held = held_out(hashes_of(rows, 0), 0.25)
    assert held.sum() == 10
    assert (held == held_out(hashes_of(rows[::-1], 0), 0.25)[::-1]).all()
    assert (held != held_out(hashes_of(rows, 1), 0.25)).any()


@checked
@given(token_rows, st.integers(2, 8), st.sampled_from(["split", "cut", "drop"]))
def test_a_length_rule_accounts_for_every_row_and_token(rows, context, rule):
    rows = [row for row in rows if any(on for _, on in row[1:])]
    examples = built(rows)
    fitted = fit(examples, context, rule)
    long = examples.lengths > context
    assert fitted.examples.lengths.max(initial=0) <= context
    assert (fitted.examples.loss_tokens > 0).all()
    assert fitted.rows + len(fitted.dropped) == len(rows)
    assert fitted.long == long.sum()
    short = [row for row, is_long in zip(plain(examples), long, strict=True) if not is_long]
    assert [row for row in plain(fitted.examples) if row in short] or not short
    if rule != "split":
        assert fitted.tokens_lost == examples.token_count - fitted.examples.token_count
    match rule:
        case "split":
            assert fitted.examples.loss_tokens.sum() == examples.loss_tokens.sum()
            assert not len(fitted.dropped)
        case "cut":
            expected = [(tokens[:context], mask[:context]) for tokens, mask in plain(examples)]
            assert plain(fitted.examples) == [row for row in expected if any(row[1])]
        case "drop":
            assert plain(fitted.examples) == short


def test_pieces_of_a_row_share_one_token():
    examples = built([[(n, True) for n in range(9)]])
    fitted = fit(examples, 4, "split")
    assert plain(fitted.examples) == [
        ([0, 1, 2, 3], [False, True, True, True]),
        ([3, 4, 5, 6], [False, True, True, True]),
        ([6, 7, 8], [False, True, True]),
    ]
    assert (fitted.rows, fitted.long, fitted.tokens_lost) == (1, 1, 0)


WORDS = ("house", "garden", "weather", "answer", "Paris")
CHATS = [chat(f"what is {n}", f"{WORDS[n % 5]} " * (1 + n % 7) + str(n)) for n in range(40)]


@pytest.fixture
def dataset(tokenizer, tmp_path) -> Dataset:
    return read_dataset(write_rows(tmp_path / "chats.jsonl", CHATS + CHATS[:5]), tokenizer)


def test_the_receipt_accounts_for_every_row(dataset):
    for receipt in (dataset.receipt, dataset.fit(500).receipt):
        assert receipt.rows_read == 45
        assert receipt.rows_trained + receipt.rows_validation + len(receipt.dropped) == 45
        assert receipt.duplicates == 5
        assert receipt.format == "messages"
    assert dataset.receipt.tokens == dataset.train.token_count
    assert dataset.receipt.loss_tokens == sum(mask.sum() for _, mask in dataset.train)
    assert len(dataset.lengths) == 45
    assert dataset.receipt.lengths["longest"] == dataset.lengths.max()
    assert len(dataset.receipt.files[0].sha256) == 64


def test_rows_over_the_context_are_refused_by_line(dataset, tokenizer, tmp_path):
    longest = int(dataset.lengths.max())
    with pytest.raises(DataError) as caught:
        dataset.fit(longest - 1)
    worst = [n for n, length in enumerate(dataset.lengths, 1) if length == longest]
    assert all(f"chats.jsonl:{n}: {longest} tokens" in str(caught.value) for n in worst[:2])
    assert f"--context {longest}" in str(caught.value)
    assert "--long-rows cut" in str(caught.value)


def test_no_row_left_is_an_error(tokenizer, tmp_path):
    path = write_rows(tmp_path / "chats.jsonl", CHATS)
    with pytest.raises(DataError, match="No row is left"):
        read_dataset(path, tokenizer, context=5, long_rows="drop")


@pytest.mark.parametrize("rule", ["cut", "drop"])
def test_one_reading_serves_any_context(rule, tokenizer, tmp_path):
    path = write_rows(tmp_path / "chats.jsonl", CHATS)
    dataset = read_dataset(path, tokenizer, long_rows=rule)
    context = int(np.median(dataset.lengths))
    fitted = dataset.fit(context)
    again = read_dataset(path, tokenizer, long_rows=rule, context=context)
    assert plain(fitted.train) == plain(again.train)
    assert plain(fitted.validation) == plain(again.validation)
    assert (fitted.fingerprint, fitted.receipt) == (again.fingerprint, again.receipt)
    assert fitted.fit(500).receipt == dataset.fit(500).receipt
    receipt = fitted.receipt
    assert receipt.rows_trained + receipt.rows_validation + len(receipt.dropped) == 40
    assert receipt.rows_too_long == (dataset.lengths > context).sum()
    assert receipt.tokens_lost == sum(dataset.lengths) - sum(
        part.token_count for part in (fitted.train, fitted.validation)
    )
    assert receipt.rows_cut + receipt.rows_too_long_dropped == receipt.rows_too_long
    assert (receipt.rows_cut > 0) == (rule == "cut")
    assert (len(receipt.dropped) > 0) == (rule == "drop")
    assert all(row.place.startswith("chats.jsonl:") for row in receipt.dropped)


def test_the_receipt_says_how_many_rows_were_cut_and_how_many_dropped(tokenizer, tmp_path):
    rows = [chat("a", "b"), chat("a", "word " * 60), chat("word " * 60, "b"), chat("c " * 90, "d")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    dataset = read_dataset(path, tokenizer, validation=0, context=48, long_rows="cut")
    lost = sum(dataset.lengths) - dataset.train.token_count
    assert f"Context     48; 3 longer rows: 1 cut, 2 dropped; {lost} tokens lost" in (
        dataset.receipt.lines()
    )


def test_texts_are_split(tokenizer, tmp_path):
    path = write_rows(tmp_path / "texts.jsonl", [{"text": f"{word} " * 50} for word in WORDS])
    dataset = read_dataset(path, tokenizer, context=32)
    assert dataset.receipt.rows_trained + dataset.receipt.rows_validation == 5
    assert dataset.receipt.examples_trained > dataset.receipt.rows_trained
    assert dataset.train.loss_tokens.sum() + dataset.validation.loss_tokens.sum() == sum(
        dataset.lengths - 1
    )
    assert "longer rows split into pieces" in "\n".join(dataset.receipt.lines())


def test_the_fingerprint_changes_with_what_is_trained(tokenizer, tmp_path):
    path = write_rows(tmp_path / "chats.jsonl", CHATS)
    options = [{}, {"seed": 1}, {"loss_on": "all"}, {"validation": 0.2}, {"context": 200},
               {"context": 300}, {"context": 300, "long_rows": "cut"}]  # fmt: skip
    fingerprints = [read_dataset(path, tokenizer, **each).fingerprint for each in options]
    write_rows(path, CHATS[::-1])
    fingerprints.append(read_dataset(path, tokenizer).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_the_receipt_is_json_and_lines(tokenizer, tmp_path):
    path = write_rows(tmp_path / "chats.jsonl", CHATS)
    context = int(np.median(read_dataset(path, tokenizer).lengths))
    dataset = read_dataset(path, tokenizer, context=context, long_rows="drop")
    batches = Batches(dataset.train, context=context, micro_batch=2, packing=True, seed=0)
    receipt = dataset.receipt.with_padding(batches.padding)
    assert json.loads(json.dumps(receipt.to_json()))["rows_read"] == 40
    text = "\n".join(receipt.lines())
    for part in ("40 = ", "dropped", "messages, rendered as a chat", "the model's own", "p50",
                 "<|eot_id|>", f"more than the context of {context}", f"{batches.padding:.1%}"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"validation": 1.0}, "--validation must be a share"),
        ({"validation": -0.1}, "--validation must be a share"),
        ({"long_rows": "split"}, "split is for text"),
        ({"long_rows": "trim"}, "Known: refuse, split, cut, drop"),
        ({"loss_on": "user"}, "Known: assistant, completion, all"),
        ({"seed": -1}, "must not be negative"),
        ({"context": 1}, "context of 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, found, tokenizer, tmp_path):
    path = write_rows(tmp_path / "chats.jsonl", CHATS)
    with pytest.raises(UsageError, match=found):
        read_dataset(path, tokenizer, **options)


def test_tiny_files_still_train(tokenizer, tmp_path):
    for count, validated in ((1, 0), (2, 1), (3, 1)):
        dataset = read_dataset(write_rows(tmp_path / "few.jsonl", CHATS[:count]), tokenizer)
        assert (len(dataset.train), len(dataset.validation)) == (count - validated, validated)


def test_a_process_that_is_killed_is_no_fault_of_the_data() -> None:
    with pytest.raises(OutOfMemoryError, match="was killed, most likely for want of memory"):
        list(encode_in_processes(partial(os._exit, 9), iter([None]), 1, bool))
