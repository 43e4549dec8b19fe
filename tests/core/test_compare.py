"""What is compared, as command lines, tables and a page; nothing is trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rows import Cli

from edgetune.cli import group
from edgetune.cli.comparison_text import tables, terminal
from edgetune.cli.train import command as train
from edgetune.errors import DataError, StoppedError, UsageError
from edgetune.methods import METHODS, known_settings
from edgetune.metrics.labels import LabelScores
from edgetune.settings.spec import Checkpointing
from edgetune.workflows.contest import Called, Contest, state_of
from edgetune.workflows.run_figures import RunFigures
from edgetune.workflows.scoring import Scores
from edgetune.workflows.settings import Fixed

SETTINGS: dict[str, Any] = {
    "rank": 4, "targets": ("q_proj", "v_proj"), "steps": 20, "packing": False, "seed": 3,
    "checkpointing": Checkpointing(layers=2, offload="disk"), "learning_rate": 1e-3,
    "label_names": ("a b", "c"), "fields": "text=sentence,label=y", "prompt_length": 7,
}  # fmt: skip


@pytest.fixture
def contest(tmp_path: Path) -> Contest:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "hello"}\n')
    return Contest(
        folder=tmp_path / "all", model="tiny", data=data, methods=("lora", "prompt", "bitfit"),
        settings=SETTINGS,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_command_line_has_the_settings_that_its_method_knows(
    method: str, contest: Contest
) -> None:
    methods = tuple(dict.fromkeys((method, "lora", "prompt")))  # all settings are known to one
    contest = replace(contest, methods=methods, memory=6_000_000_000)
    first, *words = contest.arguments(method, "new")
    assert (first, words[0]) == ("train", "--brief")
    parent = group.make_context("edgetune", ["train"])  # which says what help is called
    given = train.make_context("train", words, parent).params
    assert given["output"] == contest.run_of(method)
    assert given["memory"] == 6_000_000_000
    knobs = {name: given[name] for name in {*SETTINGS, "method", "bias"} & given.keys()}
    found = Fixed.of(knobs)
    settings = {**found.choice, **found.training}
    assert settings.pop("method") == method
    others = {"rank", "targets", "prompt_length"} - set(known_settings(method))
    assert settings == {name: value for name, value in SETTINGS.items() if name not in others}


def test_methods_are_trained_once_and_go_on(contest: Contest, tmp_path: Path) -> None:
    asked: list[str] = []

    def call(words: Any) -> Called:
        asked.append(words[1])
        return Called(code=3, printed='{"error": {"message": "too large"}}')

    contest.begin()
    assert list(contest.train(call, lambda _: None)) == [
        (name, "too large") for name in contest.methods
    ]
    assert len(asked) == 3
    contest.begin()
    with pytest.raises(UsageError, match="with other settings"):
        replace(contest, settings={"steps": 21}).begin()
    contest.data.write_text('{"text": "other"}\n')
    with pytest.raises(UsageError, match="with other rows"):
        contest.begin()
    stopped = Called(code=6, printed='{"error": {"message": "Stopped after step 2 of 3."}}')
    with pytest.raises(StoppedError, match="while lora was trained"):
        list(contest.train(lambda _: stopped, lambda _: None))
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("")
    with pytest.raises(UsageError, match="no comparison"):
        replace(contest, folder=other).begin()
    assert state_of(tmp_path / "nowhere") == "new"
    with pytest.raises(UsageError, match="no method adaptor"):
        replace(contest, methods=("adaptor",))
    with pytest.raises(UsageError, match="None of bitfit has --prompt-length, --rank"):
        replace(contest, methods=("bitfit",))
    with pytest.raises(DataError, match="There is no file"):
        replace(contest, data=tmp_path / "nowhere.jsonl").begin()
    with pytest.raises(UsageError, match="twice"):
        replace(contest, methods=("lora", "lora"))


def test_tables_fit_a_terminal() -> None:
    labels = LabelScores(accuracy=0.5, macro_f1=0.4, ece=0.1, always=0.5, labels={}, confusion={})
    scores = Scores(
        loss=123.45678, perplexity=123456.789, accuracy=1.0, rows=10, exact_match=1.0,
        token_f1=1.0, rouge_l=1.0, json_valid=1.0, json_equal=1.0, labels=labels,
    )  # fmt: skip
    one = RunFigures(
        name="runs/a/very/long/name/of/a/run", method="lora", steps=100_000, base_loss=12.3456,
        loss=11.2345, planned_bytes=12_345_678_901, peak_bytes=12_345_678_901, seconds=123_456.0,
        adapter_bytes=12_345_678_901, base_perplexity=57.6, perplexity=178_454.0, scores=scores,
    )  # fmt: skip
    bare = RunFigures(name="bare", method="bitfit", steps=0, problem="it does not fit")
    text = terminal([one, bare], {"tiny": scores}, ["bare: it does not fit"])
    assert max(map(len, text.splitlines())) <= 80
    assert "bare: it does not fit" in text
    assert one.forgets == pytest.approx(178_454 / 57.6 - 1)
    assert bare.forgets is None
    foreign = replace(one, base_perplexity=17_329.0, perplexity=13_485.0)
    assert foreign.forgets is None, "such a base does not predict the text in the first place"
    captions = [table.caption for table in tables([one, bare], {"tiny": scores})]
    assert [caption.split(": ")[-1] for caption in captions[1:]] == [
        "predicted", "answered", "labels",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Compare what?"),
        (["--steps", "3"], "--steps: settings of training"),
        (["runs/a", "--data", "x"], "--data: settings of training"),
        (["runs/a", "runs/a"], "given twice"),
        (["runs/a", "--exact-match"], "--exact-match answers the rows of --held-out"),
        (["runs/a", "--methods", "lora"], "not both"),
        (["--methods", "lora"], "Give --data FILE and --model REF"),
        (
            ["--methods", "lora", "--data", "x", "--model", "tiny", "--method", "lora"],
            "--methods already",
        ),
        (["runs/a"], "runs/a"),
    ],
)
def test_what_cannot_be_compared_is_told(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    called = Cli(capsys)("compare", *words)
    assert called.code == 2
    assert message in called.err
