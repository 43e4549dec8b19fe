"""The log-probability of every label, against the logits after each of its tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rows import write_rows

from conformance.sessions import Bench
from edgetune.data import load_tokenizer, read_dataset
from edgetune.data.labels import LabelSet
from edgetune.methods.lora import Lora
from edgetune.model import open_model
from edgetune.workflows.labelling import label_scores, log_probs
from edgetune.workflows.opened import Opened

NAMES = ("off", "set the lamp on", "set")
ROWS = [{"text": "The lamp is on." + " It is late." * n, "label": NAMES[n % 3]} for n in range(7)]


@pytest.fixture
def opened(bench: Bench) -> Opened:
    """The built-in model with an adapter that was not trained, planned for shorter rows."""
    model = open_model("tiny")
    method = Lora(rank=2, targets=("q_proj",))
    plan = bench.plan(method, model)
    session = bench.open(method, model)
    tokenizer = load_tokenizer(model.folder)
    return Opened(name="run", plan=plan, model=model, tokenizer=tokenizer, session=session)


def test_labels_have_the_probability_of_their_tokens(opened: Opened, tmp_path: Path) -> None:
    dataset = read_dataset(
        write_rows(tmp_path / "rows.jsonl", ROWS), opened.tokenizer, validation=0
    )
    rows, labels = dataset.train, LabelSet.of(opened.tokenizer, NAMES)
    found = log_probs(opened, rows, labels)
    for row, (tokens, mask) in enumerate(rows):
        prompt = tokens[: int(mask.argmax())].tolist()
        for number, answer in enumerate(labels.answers):
            logits = opened.session.logits([*prompt, *answer]).astype(np.float64)
            logits = logits[len(prompt) - 1 : -1]
            norms = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
            each = logits[np.arange(len(answer)), list(answer)] - logits.max(-1) - norms
            assert found[row, number] == pytest.approx(each.sum(), abs=2e-3)
    scores = label_scores(opened, rows, labels)
    expected = [NAMES.index(row["label"]) for row in ROWS]
    assert scores.accuracy == np.mean(found.argmax(1) == expected)
    assert {name: score.rows for name, score in scores.labels.items()} == {
        name: expected.count(index) for index, name in enumerate(NAMES)
    }
