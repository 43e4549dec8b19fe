"""Pairs of a better and a worse answer: read from every tool's shape, masked, packed whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_support import WITH_TOOLS, shown, write_model, write_rows

from edgetune.data import Batches, Dataset, Tokenizer, load_tokenizer, read_dataset
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.errors import DataError, UsageError

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Good"}
BAD = {"role": "assistant", "content": "Bad one"}
BEFORE = [USER, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "More"}]
SYSTEM = {"role": "system", "content": "Be kind."}
PLAIN = {"prompt": "Hi", "chosen": "Good", "rejected": "Bad one"}
LATER = {"prompt": BEFORE, "chosen": [GOOD], "rejected": [BAD]}
KIND = {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}


def _said(turn: dict[str, str]) -> dict[str, str]:
    names = {"user": "human", "assistant": "gpt"}
    return {"from": names[turn["role"]], "value": turn["content"]}


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "TRL's messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, PLAIN),
    "TRL's, no prompt": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, PLAIN),
    "a table's, as JSON": (
        {"prompt": json.dumps(BEFORE), "chosen": json.dumps([GOOD]), "rejected": json.dumps(BAD)},
        LATER,
    ),
    "a table's, no prompt": (
        {"chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])}, PLAIN,
    ),
    "a table's, the prompt as text": (
        {"prompt": "Hi", "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])}, PLAIN,
    ),
    "the prompt among others": (
        {"prompt": "\n\nHuman: More\n\nAssistant:", "chosen": [*BEFORE, GOOD],
         "rejected": [*BEFORE, BAD]},
        LATER,
    ),
    "the prompt twice": ({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PLAIN),
    "an answer before": ({"chosen": [*BEFORE, GOOD], "rejected": [*BEFORE, BAD]}, LATER),
    "LLaMA-Factory's chats": (
        {"conversations": list(map(_said, BEFORE)), "chosen": _said(GOOD), "rejected": _said(BAD)},
        LATER,
    ),
    "LLaMA-Factory's instructions": (
        {"instruction": "Hi", "input": "", "chosen": "Good", "rejected": "Bad one"}, PLAIN,
    ),
    "LLaMA-Factory's system": (
        {"instruction": "Hi", "system": "Be kind.", "chosen": "Good", "rejected": "Bad one"}, KIND,
    ),
    "Axolotl's conversation": ({"conversation": [USER], "chosen": GOOD, "rejected": BAD}, PLAIN),
    "Axolotl's questions": (
        {"system": "Be kind.", "question": "Hi", "chosen": "Good", "rejected": "Bad one"}, KIND,
    ),
    "Axolotl's responses": (
        {"instruction": "Hi", "chosen_response": "Good", "rejected_response": "Bad one"}, PLAIN,
    ),
    "OpenAI's": (
        {"input": {"messages": BEFORE, "tools": [], "parallel_tool_calls": True},
         "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        LATER,
    ),
    "ms-swift's": ({"messages": [*BEFORE, GOOD], "rejected_response": "Bad one"}, LATER),
    "Anthropic's": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: More\n\nAssistant: Good",
         "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: More\n\nAssistant: Bad one"},
        LATER,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("tools"), WITH_TOOLS))


def _read(tokenizer: Tokenizer, folder: Path, *rows: Any, **options: Any) -> Dataset:
    path = write_rows(folder / "rows.jsonl", list(rows))
    return read_dataset(path, tokenizer, **{"validation": 0, "kind": "pairs", **options})


def test_both_answers_are_learned_after_their_prompt(tokenizer, tmp_path):
    text = shown(_read(tokenizer, tmp_path, LATER), tokenizer)
    assert text.count("[") == 2
    assert "[Good<|im_end|>]" in text
    assert "[Bad one<|im_end|>]" in text
    assert text.count("Hello.") == text.count("More") == 2


@pytest.mark.parametrize("name", SAME)
def test_a_shape_is_read_as_it_is_meant(name, tokenizer, tmp_path):
    row, same = SAME[name]
    found, right = (_read(tokenizer, tmp_path, each) for each in (row, same))
    assert shown(found, tokenizer) == shown(right, tokenizer)
    assert found.train.firsts.tolist() == right.train.firsts.tolist()


@pytest.mark.parametrize(
    ("row", "because"),
    [
        ({"prompt": "Hi", "completion": "Good"}, "needs one of: chosen and rejected"),
        ({"chosen": "Good", "rejected": "Bad"}, "There is no prompt beside chosen"),
        ({**PLAIN, "rejected": None}, "rejected is null"),
        ({**PLAIN, "rejected": ""}, "field rejected is empty"),
        ({**PLAIN, "rejected": ["Bad"]}, "field rejected must be text, .* found a list with text"),
        ({**PLAIN, "chosen": 7}, "field chosen must be text, .* found a number"),
        ({"messages": [USER, GOOD], "rejected_response": " "}, "field rejected_response is empty"),
        (
            {"chosen": [USER, GOOD], "rejected": [BEFORE[-1], BAD]},
            "must part at an answer; these part at message 1, which is the user's",
        ),
        ({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": "Bad"}, "a whole conversation"),
        ({"prompt": "Be kind.", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "left out"),
        ({"prompt": [SYSTEM], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "left out"),
        (
            {"prompt": "Hi", "chosen": repr([USER, GOOD]), "rejected": repr([USER, BAD])},
            "as Python prints them, with single quotes .chosen and rejected",
        ),
    ],
)
def test_a_row_that_is_no_pair_is_refused(row, because, tokenizer, tmp_path):
    with pytest.raises(DataError, match=because):
        _read(tokenizer, tmp_path, row)


def test_an_answer_in_json_stays_a_text(tokenizer, tmp_path):
    chosen = json.dumps([GOOD])
    text = shown(_read(tokenizer, tmp_path, {**PLAIN, "chosen": chosen}), tokenizer)
    assert f"[{chosen}<|im_end|>]" in text


def test_columns_are_mapped(tokenizer, tmp_path):
    row = {"ask": "Hi", "better": "Good", "worse": "Bad one"}
    fields = {"prompt": "ask", "chosen": "better", "rejected": "worse"}
    found = _read(tokenizer, tmp_path, row, fields=fields)
    assert shown(found, tokenizer) == shown(_read(tokenizer, tmp_path, PLAIN), tokenizer)


def test_options_that_part_an_answer_are_refused(tokenizer, tmp_path):
    with pytest.raises(UsageError, match="--long-rows cut"):
        _read(tokenizer, tmp_path, PLAIN, long_rows="cut")
    with pytest.raises(UsageError, match="--loss-on all"):
        _read(tokenizer, tmp_path, PLAIN, loss_on="all")


def test_equal_answers_and_lengths_are_in_the_receipt(tokenizer, tmp_path):
    receipt = _read(tokenizer, tmp_path, PLAIN, {**PLAIN, "rejected": "Good"}).receipt
    assert any(note.endswith("nothing is learned: 1") for note in receipt.notes)
    assert receipt.answers["chosen"]["longest"] < receipt.answers["rejected"]["longest"]
    assert any(line.startswith("Rejected    learned tokens: ") for line in receipt.lines())


@pytest.mark.parametrize("packing", [True, False])
def test_pairs_stay_together(packing, tokenizer, tmp_path):
    rows = [{**PLAIN, "chosen": "Good " * (1 + n % 5), "rejected": "Bad " * (1 + n % 3)}
            for n in range(23)]  # fmt: skip
    data = _read(tokenizer, tmp_path, *rows, context=160)
    batches = Batches(data.train, context=160, micro_batch=2, packing=packing, seed=0)
    terms = 0
    for number in range(batches.steps_per_epoch):
        step = batches.step(number)
        for batch in step.micro_batches:
            for row in range(len(batch.tokens)):
                alone = batch.rows(row, row + 1)
                assert alone.kinds == ("chosen", "rejected") * (len(alone.kinds) // 2)
                assert len(alone.kinds) == len(alone.documents[0])
                learned = np.bincount(alone.loss_documents())
                assert len(learned) == len(alone.kinds)
                assert learned.min() >= 2
        assert step.terms == sum(len(batch.kinds) // 2 for batch in step.micro_batches)
        terms += step.terms
    assert terms == 23


def test_no_answer_is_predicted_from_the_one_before(tokenizer, tmp_path):
    data = _read(tokenizer, tmp_path, PLAIN, context=64)
    batch = Batches(data.train, context=64, micro_batch=1, packing=True, seed=0).step(0)
    (only,) = batch.micro_batches
    first = only.documents[0][0]
    assert only.targets[0, first - 1] == IGNORED
    assert only.tokens[0, first] == only.tokens[0, 0]


@pytest.mark.parametrize("packing", [True, False])
def test_shared_prompts_are_computed_once_and_the_documents_stay_what_they_were(
    packing, tokenizer, tmp_path
):
    rows = [{"prompt": "Say " * (1 + n % 4), "chosen": f"Good {n}", "rejected": "Good! " * (n % 3 + 1)}
            for n in range(17)]  # fmt: skip
    apart, shared = (
        _read(tokenizer, tmp_path, *rows, context=200, share_prompts=share)
        for share in (False, True)
    )
    found = []
    for data in (apart, shared):
        batches = Batches(data.train, context=200, micro_batch=2, packing=packing, seed=0)
        steps = [batches.step(number) for number in range(batches.steps_per_epoch)]
        computed = sum(batch.real_tokens for step in steps for batch in step.micro_batches)
        assert computed == sum(step.tokens for step in steps) == data.train.token_count
        found.append(sorted(one for step in steps for each in step.micro_batches
                            for one in _documents(each)))  # fmt: skip
    assert found[0] == found[1]
    train = shared.train
    assert train.token_count == apart.train.token_count - train.shared.sum()
    assert train.shared.min() > 0
    for index in range(len(train)):  # all of the prompt but the token that both answers follow
        _, mask = train[index]
        assert train.shared[index] == np.argmax(mask) - 1
    assert shared.receipt.shared == train.shared.sum()
    assert any(line.startswith("Prompts ") for line in shared.receipt.lines())
    assert not any(line.startswith("Prompts ") for line in apart.receipt.lines())
    assert shared.fingerprint != apart.fingerprint


def _documents(batch: MicroBatch) -> list[tuple[Any, ...]]:
    """Return the tokens, targets and positions of each document, whole."""
    found, positions = [], batch.positions()
    for row, (lengths, begins) in enumerate(zip(batch.documents, batch.begins, strict=True)):
        start = before = 0
        for length, first in zip(lengths, begins, strict=True):
            own, trunk = slice(start, start + length), slice(before, before + first)
            parts = ([*x[row, trunk].tolist(), *x[row, own].tolist()]
                     for x in (batch.tokens, batch.targets, positions))  # fmt: skip
            found.append(tuple(map(tuple, parts)))
            before, start = start, start + length
    return found


def test_a_pair_with_a_long_prompt_fits_where_it_is_shared(tokenizer, tmp_path):
    row = {**PLAIN, "prompt": "Say " * 40}
    whole = _read(tokenizer, tmp_path, row)
    shared = _read(tokenizer, tmp_path, row, share_prompts=True)
    context = int(shared.lengths.max())
    assert context < 0.7 * whole.lengths.max()
    assert shared.fit(context).receipt.rows_too_long == 0
    with pytest.raises(DataError, match="more than the context"):
        whole.fit(context)


def test_answers_in_which_nothing_is_alike_share_nothing(tokenizer, tmp_path):
    tools = {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}
    data = _read(tokenizer, tmp_path, tools, PLAIN).train
    tokens = np.array(data.tokens)
    tokens[data.starts[1] + data.firsts[1]] += 1  # what the second document begins with
    found = replace(data, tokens=tokens).sharing_prompts().shared
    assert found[0] == data.sharing_prompts().shared[0] > 0
    assert found[1] == 0
