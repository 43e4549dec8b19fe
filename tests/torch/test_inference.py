"""Finished runs on rows and prompts that are longer than what they were planned for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import make_model
from sessions import plan_for

from edgetune.backend import DeviceOutOfMemoryError, GenerateOptions
from edgetune.data import Examples, load_tokenizer
from edgetune.data.encode import Learned
from edgetune.data.examples import RowLocations
from edgetune.data.token_store import token_store_of
from edgetune.errors import OutOfMemoryError, UsageError
from edgetune.generation import generate
from edgetune.methods.prefix import Prefix
from edgetune.methods.prompt import Prompt
from edgetune.model import LocalModel, resolve
from edgetune.workflows.inference import answers
from edgetune.workflows.opened import Opened
from edgetune.workflows.scoring import dataset_of, rows_of, score
from edgetune_torch.opening import open_session

LENGTHS = (20, 20, 20, 90, 90, 90)
POSITIONS = 96
"""Of the small GPT-2."""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Opened]:
    """A run that was planned for two rows of 32 tokens."""
    tiny = resolve("tiny").folder
    assert tiny is not None
    vocabulary = LocalModel.open(tiny).shape.vocabulary
    folder = make_model(tmp_path / "base", "gpt2", vocab_size=vocabulary, n_positions=POSITIONS)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / name, folder)
    model = LocalModel.open(folder)
    plan = plan_for(model)
    with closing(open_session(plan.spec, model)) as session:
        yield Opened(
            name="run",
            plan=plan,
            model=model,
            tokenizer=load_tokenizer(folder),
            session=session,
        )


def _rows() -> Examples:
    draw = np.random.default_rng(0)
    rows = [Learned(draw.integers(3, 97, n, np.int32), [(n // 2, n)]) for n in LENGTHS]
    columns = token_store_of(rows, range(len(rows)))
    return Examples.of(columns, RowLocations(("rows:",), np.array([0, len(rows)]), columns.lines))


def _seen(run: Opened, monkeypatch: pytest.MonkeyPatch, most: int) -> list[tuple[int, ...]]:
    """Return what will hold the shapes that are evaluated; more tokens than ``most`` fail."""
    shapes, evaluate = [], run.session.evaluate

    def watched(batches: Any, **options: Any) -> Any:
        for batch in batches:
            shapes.append(batch.tokens.shape)
            if batch.tokens.size > most:
                raise DeviceOutOfMemoryError("can't allocate memory")
        return evaluate(batches, **options)

    monkeypatch.setattr(run.session, "evaluate", watched)
    return shapes


def test_longer_rows_are_evaluated_a_few_at_a_time(
    run: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = _seen(run, monkeypatch, most=95)
    found = score(run, _rows(), exact_match=False)

    assert found.rows == len(LENGTHS)
    assert max(rows * width for rows, width in shapes) <= max(2 * 32, *LENGTHS)


def test_rows_that_do_not_fit_are_tried_one_by_one_and_named(
    run: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = _seen(run, monkeypatch, most=30)  # similar lengths are padded to one
    with pytest.raises(OutOfMemoryError, match="A row of 90 tokens does not fit"):
        score(run, _rows(), exact_match=False)

    assert shapes == [(2, 24), (1, 24), (1, 24), (1, 90)]


@pytest.mark.parametrize("count", [1, 2])
def test_an_answer_ends_with_the_last_learned_position(run: Opened, count: int) -> None:
    options = GenerateOptions(max_tokens=POSITIONS)
    prompt = "Turn on the lamp. " * 4
    length = len(run.prompt_tokens(prompt))

    alone = "".join(run.generate(prompt, options))
    assert next(answers([run], [prompt, "Turn"][:count], options)) == alone
    found = list(generate(run.session, [run.prompt_tokens(prompt)], options))
    assert len(found) == POSITIONS - length + 1


def test_rows_beyond_the_positions_of_the_model_are_refused(run: Opened, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "Turn on the lamp.", "completion": "lamp " * n} for n in (1, POSITIONS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = replace(run.plan.model, ref=str(run.model.folder))
    with pytest.raises(UsageError, match=rf"has positions for {POSITIONS}\. Leave out rows"):
        rows_of(replace(run, plan=replace(run.plan, model=named)), data)


def test_rows_leave_the_positions_that_an_adapter_takes(run: Opened, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "Turn on the lamp.", "completion": "lamp " * 20}) + "\n")
    named = replace(run.plan.model, ref=str(run.model.folder))
    own = replace(run, plan=replace(run.plan, model=named))
    longest = int(rows_of(own, data).lengths.max())
    rest = POSITIONS - longest
    for fits, full in (
        (Prefix(prefix_length=rest), Prefix(prefix_length=rest + 1)),
        (Prompt(prompt_length=rest), Prompt(prompt_length=rest + 1)),
    ):
        adapted = replace(own, method=fits)
        assert len(rows_of(adapted, data)) == len(dataset_of(own, data, [adapted]).train) == 1
        adapted = replace(own, method=full)
        for first, others in ((adapted, ()), (own, (adapted,))):
            said = f"positions for {longest - 1} besides the {rest + 1} of an adapter"
            with pytest.raises(UsageError, match=said):
                dataset_of(first, data, others)


def test_a_prompt_beyond_the_learned_positions_is_refused(run: Opened) -> None:
    prompt = "Turn on the lamp. " * POSITIONS
    with pytest.raises(UsageError, match=f"has positions for {POSITIONS}"):
        list(answers([run], [prompt], GenerateOptions(max_tokens=1)))
    with pytest.raises(UsageError, match=f"has positions for {POSITIONS}"):
        list(run.generate(prompt, GenerateOptions(max_tokens=1)))


def test_trained_tokens_take_positions_too(run: Opened) -> None:
    full = replace(run, method=Prompt(prompt_length=POSITIONS - 1))
    with pytest.raises(UsageError, match="has positions for 1"):
        full.prompt_tokens("Turn on the lamp.")
    assert full.base().prompt_tokens("Turn on the lamp.")


def test_an_answer_that_does_not_fit_is_said(run: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise DeviceOutOfMemoryError("can't allocate memory")

    monkeypatch.setattr(run.session, "read", fail)
    for ask in (run.generate, lambda prompt, options: answers([run], [prompt], options)):
        with pytest.raises(OutOfMemoryError, match=r"answer of up to 7 keeps .* --max-tokens"):
            list(ask("Turn on the lamp.", GenerateOptions(max_tokens=7)))
