"""``--log``: what a dashboard is given is what the run's own log says; a broken one ends no run."""

from __future__ import annotations

import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import click
import pytest
from rows import Cli, write_rows

from edgetune.cli.sinks import check_sinks, sinks, values_of
from edgetune.errors import UsageError
from edgetune.events import RunState as State
from edgetune.events import SaveDue, Stepped
from edgetune.runs.lines import read_lines
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.training import Run

TRAIN = ("train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--steps", "3",
         "--rank", "2", "--output", "run")  # fmt: skip


STEP = Stepped(
    step=1, loss=2.0, tokens=100, loss_tokens=50, seconds=0.5, learning_rate=0.1, grad_norm=1.0,
    peak_bytes=7, epoch=0, metrics={"margin": 3.0},
)  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in a folder with some rows."""
    monkeypatch.chdir(tmp_path)
    write_rows(Path("rows.jsonl"))
    return Cli(capsys)


def test_tensorboard_is_given_what_the_run_logs(cli: Cli) -> None:
    called = cli(*TRAIN, "--log", "tensorboard", "--json")

    assert called.code == 0, called.err
    assert "tensorboard --logdir run/tensorboard" in called.err
    drawn = _drawn(Path("run/tensorboard"))
    lines = read_lines(Path("run/metrics.jsonl"))
    steps = {line["step"]: line["loss"] for line in lines if line.get("event") == "step"}
    assert drawn["train/loss"] == pytest.approx(steps)
    assert steps.keys() == {1, 2, 3}
    evaluated = {line["step"]: line["loss"] for line in lines if line.get("event") == "eval"}
    assert drawn["validation/loss"] == pytest.approx(evaluated)
    assert 0 in evaluated


def _drawn(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: dict[str, dict[int, float]] = defaultdict(dict)
    for file in folder.iterdir():
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found[value.tag][event.step] = value.simple_value
    return found


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_dashboard_that_is_not_installed_is_refused_before_anything(cli: Cli, name: str) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    called = cli(*TRAIN, "--log", f"tensorboard,{name}")

    assert called.code == 2
    assert called.err == (
        f"Error: --log {name} needs a package that is not installed. Type: pip install {name}\n"
    )
    assert not Path("run").exists()


def test_a_dashboard_that_is_not_known(cli: Cli) -> None:
    with pytest.raises(UsageError, match=r"no --log mlflow\. There are: tensorboard, trackio, wan"):
        check_sinks(["mlflow"])
    assert cli(*TRAIN, "--log", "mlflow").code == 2


class Dashboard:
    """Weights & Biases as far as it is called, failing where it is told to."""

    def __init__(self, fails: str) -> None:
        self.fails, self.told = fails, list[object]()

    def init(self, **given: object) -> Dashboard:
        assert given["mode"] == "offline"
        sys.stdout.write("printed by a package\n")
        self._fail("opening")
        return self

    def define_metric(self, *_: object, **__: object) -> None: ...

    def log(self, values: object) -> None:
        self._fail("logging")
        self.told.append(values)

    def finish(self) -> None:
        self._fail("closing")

    def _fail(self, where: str) -> None:
        if where == self.fails:
            raise ConnectionError("the server is gone")

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package = ModuleType("wandb")
        package.__spec__ = find_spec("json")
        package.init, package.Settings = self.init, dict  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "wandb", package)
        monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.mark.parametrize("fails", ["opening", "logging", "closing"])
def test_a_dashboard_that_fails_is_told_of_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: str
) -> None:
    dashboard = Dashboard(fails)
    dashboard.put_in_place(monkeypatch)
    plan = plan_for(PlanRequest(model="tiny", device="cpu")).plan
    run = SimpleNamespace(job=SimpleNamespace(plan=plan), folder=SimpleNamespace(path=Path("run")))

    with click.Context(click.Command("train")), sinks(["wandb"], cast("Run", run)) as logged:
        for _ in range(3):
            logged(STEP)
    said = capsys.readouterr()

    assert said.out == ""
    assert said.err.count("--log wandb stopped: ConnectionError: the server is gone") == 1
    assert len(dashboard.told) == (3 if fails == "closing" else 0)


def test_only_steps_and_evaluations_are_drawn() -> None:
    drawn = values_of(STEP)

    assert drawn is not None
    assert drawn["train/tokens_per_second"] == 200
    assert drawn["train/margin"] == 3.0
    assert values_of(SaveDue(state=State())) is None
