"""Answers that are desirable or not: read from every tool's shape, mismatched, told in the receipt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_support import WITH_TOOLS, shown, write_model, write_rows
from preferences import Rated, answered, examples_of, rated, rated_examples

from edgetune.data import (
    Batches,
    Dataset,
    MicroBatch,
    Tokenizer,
    evaluation_batches,
    load_tokenizer,
    read_dataset,
    show_rows,
)
from edgetune.data.batch import IGNORED
from edgetune.data.mismatched import mismatched_pieces
from edgetune.errors import DataError, UsageError

USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Good"}
BEFORE = [USER, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "More"}]
SYSTEM = {"role": "system", "content": "Be kind."}
PLAIN = {"prompt": "Hi", "completion": "Good", "label": True}
LATER = {"prompt": BEFORE, "completion": [SAID], "label": True}
KIND = {"prompt": [SYSTEM, USER], "completion": [SAID], "label": True}


def _dialect(turn: dict[str, str]) -> dict[str, str]:
    names = {"user": "human", "assistant": "gpt"}
    return {"from": names[turn["role"]], "value": turn["content"]}


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "TRL's messages": ({"prompt": [USER], "completion": [SAID], "label": True}, PLAIN),
    "a table's, as JSON": (
        {"prompt": json.dumps(BEFORE), "completion": json.dumps([SAID]), "label": "True"}, LATER,
    ),
    "a tag": ({"prompt": "Hi", "completion": "Good", "kto_tag": True}, PLAIN),
    "a label as text": ({**PLAIN, "label": "True"}, PLAIN),
    "a label as a number": ({**PLAIN, "label": 1}, PLAIN),
    "a label as a float": ({**PLAIN, "label": 1.0}, PLAIN),
    "LLaMA-Factory's instructions": (
        {"instruction": "Hi", "input": "", "output": "Good", "kto_tag": True}, PLAIN,
    ),
    "LLaMA-Factory's history": (
        {"instruction": "More", "output": "Good", "history": [["Hi", "Hello."]], "kto_tag": True},
        LATER,
    ),
    "LLaMA-Factory's messages": ({"messages": [*BEFORE, SAID], "label": True}, LATER),
    "LLaMA-Factory's chats": (
        {"conversations": [_dialect(turn) for turn in (*BEFORE, SAID)], "kto_tag": True}, LATER,
    ),
    "a system prompt beside messages": (
        {"messages": [USER, SAID], "system": "Be kind.", "label": True}, KIND,
    ),
    "Axolotl's": ({"instruction": "Hi", "completion": "Good", "label": True}, PLAIN),
    "Axolotl's system": (
        {"system": "Be kind.", "question": "Hi", "completion": "Good", "label": True}, KIND,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("tools"), WITH_TOOLS))


def _read(tokenizer: Tokenizer, folder: Path, *rows: Any, **options: Any) -> Dataset:
    path = write_rows(folder / "rows.jsonl", list(rows))
    return read_dataset(path, tokenizer, **{"validation": 0, "kind": "unpaired", **options})


@pytest.mark.parametrize("name", SAME)
def test_a_shape_is_read_as_it_is_meant(name, tokenizer, tmp_path):
    row, same = SAME[name]
    field = "label" if "label" in row else "kto_tag"
    found, right = (_read(tokenizer, tmp_path, each) for each in (row, same))
    assert shown(found, tokenizer) == shown(right, tokenizer)
    assert shown(found, tokenizer).count("[") == 1
    assert found.train.documents(0) == ((int(found.train.lengths[0]),), ("chosen",))
    worse = _read(tokenizer, tmp_path, {**row, field: False})
    assert worse.train.documents(0)[1] == ("rejected",)
    assert shown(worse, tokenizer) == shown(right, tokenizer)
    assert worse.fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("row", "because"),
    [
        ({"prompt": "Hi", "completion": "Good"}, "A row needs one answer, and a label or kto_tag"),
        ({**PLAIN, "label": None}, "label is null"),
        ({**PLAIN, "label": 0.5}, "label must be true .* found 0.5"),
        ({**PLAIN, "label": "good"}, "label must be true .* found 'good'"),
        ({**PLAIN, "label": [True]}, "label must be true .* found a list"),
        ({**PLAIN, "completion": ""}, "field completion is empty"),
        ({"question": "Hi", "response": "", "label": True}, "field response is empty"),
        ({"messages": repr([USER, SAID]), "label": True}, "as Python prints them"),
        ({"messages": BEFORE, "label": True}, "must end with the assistant's answer"),
        ({"messages": [SAID], "label": True}, "must end with the assistant's answer"),
        ({"messages": [USER, {**SAID, "weight": 0}], "label": True}, "marked as not learned"),
    ],
)
def test_a_row_that_is_not_rated_is_refused(row, because, tokenizer, tmp_path):
    with pytest.raises(DataError, match=because):
        _read(tokenizer, tmp_path, row)


def test_other_ways_to_learn_name_the_objective(tokenizer, tmp_path):
    for kind, because in (("pairs", "rows for --objective kto"), (None, "with --objective kto")):
        with pytest.raises(DataError, match=because):
            _read(tokenizer, tmp_path, PLAIN, kind=kind)


def test_columns_are_mapped(tokenizer, tmp_path):
    row = {"ask": "Hi", "reply": "Good", "thumb": "false"}
    fields = {"prompt": "ask", "completion": "reply", "label": "thumb"}
    found = _read(tokenizer, tmp_path, row, fields=fields)
    assert shown(found, tokenizer) == shown(_read(tokenizer, tmp_path, PLAIN), tokenizer)
    assert found.train.documents(0)[1] == ("rejected",)


def test_options_that_part_an_answer_are_refused(tokenizer, tmp_path):
    with pytest.raises(UsageError, match="--long-rows cut"):
        _read(tokenizer, tmp_path, PLAIN, long_rows="cut")
    with pytest.raises(UsageError, match="--loss-on all"):
        _read(tokenizer, tmp_path, PLAIN, loss_on="all")


def test_both_sides_are_in_the_receipt(tokenizer, tmp_path):
    rows = [{**PLAIN, "label": n % 3 == 0, "completion": f"Good {n}"} for n in range(12)]
    receipt = _read(tokenizer, tmp_path, *rows).receipt
    note = "answers that are desirable: 4, undesirable: 8; --desirable-weight 2 would"
    assert any(note in each for each in receipt.notes)
    assert receipt.answers.keys() == {"desirable", "undesirable"}
    both = _read(tokenizer, tmp_path, {**PLAIN, "label": 0}, PLAIN, {**PLAIN, "prompt": "Ho"})
    assert any("undesirable in another row: 1, the first is rows.jsonl:2" in each
               for each in both.receipt.notes)  # fmt: skip
    assert [row.answer for row in show_rows(both, tokenizer, first=2)] == [
        "undesirable", "desirable",
    ]  # fmt: skip
    one = _read(tokenizer, tmp_path, PLAIN).receipt
    assert any("nothing says what is to be told apart" in each for each in one.notes)
    assert "Undesirable learned tokens: none" in one.lines()


def test_pairs_are_two_answers(tokenizer, tmp_path):
    rows = [{"prompt": f"Hi {n}", "chosen": f"Good {n}", "rejected": f"A bad one {n}"}
            for n in range(5)]  # fmt: skip
    data = _read(tokenizer, tmp_path, *rows)
    assert any("pairs are taken apart" in note for note in data.receipt.notes)
    assert data.receipt.answers["desirable"]["longest"] < data.receipt.answers["undesirable"][
        "shortest"
    ]  # fmt: skip
    step = Batches(
        data.train, context=128, micro_batch=2, accumulation=3, packing=False, seed=0
    ).step(0)
    assert step.terms == 10
    found = [kind for batch in step.micro_batches for kind in batch.kinds]
    assert sorted(found) == ["chosen"] * 5 + ["mismatched"] * 10 + ["rejected"] * 5
    own, others = (
        {tuple(tokens) for tokens, _ in _documents([b for b in step.micro_batches
                                                    if b.is_mismatched is on])}
        for on in (False, True)
    )  # fmt: skip
    assert len(others) == 10
    assert not own & others  # no answer comes after its own prompt, whether chosen or rejected


def _documents(batches: list[MicroBatch]) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of every document, and those of them that are scored."""
    found = []
    for batch in batches:
        for tokens, targets, lengths in zip(
            batch.tokens, batch.targets, batch.documents, strict=True
        ):
            start = 0
            for length in lengths:
                own = slice(start, start + length)
                scored = targets[own][targets[own] != IGNORED]
                found.append((tokens[own].tolist(), scored.tolist()))
                start += length
    return sorted(found)


def _after_other_prompts(rows: list[Rated], by: int, longest: int) -> Any:
    found = []
    for number, row in enumerate(rows):
        answer = rows[number - by].answer.tolist()[: longest - len(row.prompt)]
        found.append(([*row.prompt.tolist(), *answer], answer))
    return sorted(found)


@pytest.mark.parametrize(
    ("pair", "by"), [(0, 1), (2, 2)], ids=["first-of-a-step", "half-way-of-an-evaluation"]
)
def test_no_answer_of_rows_and_pairs_comes_after_its_own_prompt(pair, by):
    rows = [answered([n], [10 + n], desirable=True) for n in range(4)]
    rows[pair] = rows[pair].followed(answered([pair], [10 + pair], desirable=False))
    found = mismatched_pieces(examples_of(rows), np.arange(4), by=by, longest=9)
    assert len(found) == 5
    assert all(answer != prompt + 10 for prompt, answer in (piece.tokens for piece in found))


@pytest.mark.parametrize("packing", [True, False])
def test_answers_of_a_step_come_after_each_others_prompts(packing):
    rows = rated(23)
    examples = rated_examples(rows)
    longest = int(examples.lengths.max())
    batches = Batches(examples, context=24, micro_batch=2, accumulation=3, packing=packing, seed=0)
    shapes = set()
    for number in range(2 * batches.steps_per_epoch):
        step = batches.step(number)
        own = [rows[n] for n in step.rows]
        others = [batch for batch in step.micro_batches if batch.is_mismatched]
        expected = _after_other_prompts(own, 1, longest) if len(own) > 1 else []
        assert _documents(others) == expected
        assert step.terms == len(own)
        assert sum(len(b.kinds) for b in step.micro_batches if not b.is_mismatched) == len(own)
        shapes |= {batch.tokens.shape[1] for batch in others}
        assert all(len(batch.tokens) <= 2 for batch in others)
    assert shapes <= {width for _, width in batches.shapes}


def test_answers_of_an_evaluation_come_after_prompts_far_away():
    rows = rated(9)
    examples = rated_examples(rows)
    found = [
        batch for batch in evaluation_batches(examples, context=24, micro_batch=4)
        if batch.is_mismatched
    ]  # fmt: skip
    assert _documents(found) == _after_other_prompts(rows, 4, int(examples.lengths.max()))
    alone = evaluation_batches(examples.take(np.array([3])), context=24, micro_batch=4)
    assert [batch.is_mismatched for batch in alone] == [False]
