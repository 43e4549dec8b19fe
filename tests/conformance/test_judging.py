"""The end of a run on real sessions: its verdict is what the session computes, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import pytest
from rows import write_rows

from conformance.backends import BACKENDS, WAYS
from conformance.sessions import Bench, rows, step
from edgetune.backend import EvalResult
from edgetune.data import load_tokenizer
from edgetune.events import Event, Judged
from edgetune.files import sha256_file
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel, open_model
from edgetune.neutral import drift, neutral_batches
from edgetune.speed import run as run_times
from edgetune.workflows.after import After
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.training import Run, start_run


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A run that was judged, its session still open."""

    run: Run
    events: list[Event]

    def read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run.folder.path / name).read_text())
        return found


def begun(name: str, folder: Path) -> Run:
    choice = {"micro_batch": 2, "accumulation": 1, "rank": 2, "targets": ("q_proj",)}
    request = PlanRequest(
        model="tiny",
        data=write_rows(folder.parent / "rows.jsonl"),
        device=WAYS[name].device,
        choice=choice,
        training={"steps": 4, "validation": 0.1, "eval_every": 2, "learning_rate": 0.01},
    )
    return start_run(plan_for(request), folder)


@pytest.fixture(scope="module", params=list(BACKENDS))
def judged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Judgement]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_times, "LEAST_JUDGING", 0.3)  # a few rows of the text are enough here
        run = begun(request.param, tmp_path_factory.mktemp("judged") / "run")
        with closing(run):
            yield Judgement(run=run, events=list(run.events(pilot=False, after=After(samples=1))))


def test_a_verdict_is_what_the_session_computes(judged: Judgement) -> None:
    (told,) = [event for event in judged.events if isinstance(event, Judged)]
    assert judged.events[-1] is told
    verdict, run = judged.read("verdict.json"), judged.run
    assert verdict == json.loads(json.dumps(told.record))
    neutral, held_out = verdict["neutral"], verdict["held_out"]
    tokenizer = load_tokenizer(run.job.model.folder)
    base, tuned = EvalResult(), EvalResult()
    for batch in neutral_batches(tokenizer, run.job.plan.choice.context, 2):
        if base.loss_tokens < neutral["count"]:
            base += run.session.evaluate((batch,), adapter=None)
            tuned += run.session.evaluate((batch,))
    assert neutral["count"] == base.loss_tokens
    assert neutral["base_loss"] == pytest.approx(base.loss_sum / base.loss_tokens)
    assert neutral["loss"] == pytest.approx(tuned.loss_sum / tuned.loss_tokens)
    assert neutral["perplexity"] == pytest.approx(exp(neutral["loss"]))
    lines = {line["step"]: line["loss"] for line in run.folder.evaluations()}
    assert held_out["base_loss"] == lines[0]
    assert verdict["step"] == min((2, 4), key=lambda number: lines[number])
    assert held_out["loss"] == lines[verdict["step"]]


def test_samples_are_the_first_held_out_rows_answered_by_both(judged: Judgement) -> None:
    (found,) = judged.read("samples.json")["samples"]
    assert found["place"] == judged.run.job.dataset.validation.place(0)
    assert found["expected"].strip()
    assert found["expected"].strip() not in found["prompt"]
    assert isinstance(found["base"], str)
    assert isinstance(found["tuned"], str)


def test_looking_at_a_run_changes_nothing_of_it(judged: Judgement, tmp_path: Path) -> None:
    name = "mlx" if judged.run.job.plan.device.backend == "mlx" else "torch"
    run = begun(name, tmp_path / "run")
    with closing(run):
        list(run.events(pilot=False, after=After(verdict=False, samples=0)))
    assert not (run.folder.path / "verdict.json").exists()
    assert not (run.folder.path / "samples.json").exists()
    assert learned(run.folder.path) == learned(judged.run.folder.path)


def learned(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha256_file(file)
        for file in sorted(folder.rglob("*.safetensors"))
    }


def test_an_untrained_adapter_has_drifted_nowhere_and_a_trained_one_has(
    bench: Bench, llama: LocalModel
) -> None:
    session = bench.open(Lora(rank=2), llama)
    found = drift(session, [rows(), rows(2)])
    assert found.share == pytest.approx(0.0, abs=1e-6)
    assert found.whole
    for _ in range(3):
        step(session, rows(seed=5), rate=0.1)
    moved = drift(session, [rows(), rows(2)])
    assert moved.base_loss == found.base_loss
    assert abs(moved.share) > 1e-3


def test_time_that_is_up_ends_the_text(bench: Bench, llama: LocalModel) -> None:
    found = drift(bench.open(Lora(rank=2), llama), [rows(), rows(2)], seconds=0.0)
    assert found.tokens == rows().loss_tokens
    assert not found.whole


@pytest.mark.parametrize("context", [2, 12, 100, 4096])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_text_is_cut_into_rows_of_one_width(context: int, rows: int) -> None:
    tokenizer = load_tokenizer(open_model("tiny").folder)
    batches = neutral_batches(tokenizer, context, rows)
    widths = {batch.tokens.shape[1] for batch in batches}
    assert widths == {min(256, context)}
    assert all(len(batch.tokens) <= rows for batch in batches)
    predicted = sum(batch.loss_tokens for batch in batches)
    assert predicted == sum(batch.tokens.size - len(batch.tokens) for batch in batches)
