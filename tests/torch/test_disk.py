"""The command line on disks that are full, folders that are taken away, and others' files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import full_disk
from rows import Cli, call, write_rows

from edgetune.cli.progress import ProgressBar
from edgetune.events import Event, Stepped
from edgetune.files import sha256_file

LEARN = ("train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--rank", "2",
         "--targets", "q_proj", "--layers", "1", "--context", "64", "--micro-batch", "2",
         "--accumulation", "1", "--steps", "3", "--eval-every", "1")  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl")
    return Cli(capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has come to its end."""
    folder = tmp_path_factory.mktemp("finished")
    write_rows(folder / "rows.jsonl")
    called = call(*LEARN, "--output", "run", cwd=folder)
    assert called.code == 0, called.err
    return folder / "run"


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Do something once when a step is shown."""

    def arrange(step: int, act: Callable[[], object]) -> None:
        show = ProgressBar.show

        def shown(bar: ProgressBar, event: Event) -> None:
            show(bar, event)
            if isinstance(event, Stepped) and event.step == step:
                monkeypatch.setattr(ProgressBar, "show", show)
                act()

        monkeypatch.setattr(ProgressBar, "show", shown)

    return arrange


def weights(run: Path) -> str:
    return sha256_file(run / "adapter" / "adapter_model.safetensors")


def test_a_folder_that_is_moved_is_said_and_the_run_goes_on_from_there(
    finished: Path, cli: Cli, tmp_path: Path, after_step: Callable[..., None]
) -> None:
    after_step(2, lambda: shutil.move("run", "moved"))
    stopped = cli(*LEARN, "--output", "run", "--json")
    assert stopped.code == 6, stopped.err
    assert f"run was moved to {tmp_path / 'moved'}" in stopped.err
    assert "The checkpoint step-000001 is whole" in stopped.err
    assert f"--resume --output {tmp_path / 'moved'}" in stopped.err
    assert json.loads(stopped.out)["error"]["exit_code"] == 6
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "moved"}
    assert cli("train", "--resume", "--output", "moved").code == 0
    assert weights(Path("moved")) == weights(finished)


def test_a_folder_that_is_deleted_is_said_and_not_made_again(
    cli: Cli, tmp_path: Path, after_step: Callable[..., None]
) -> None:
    after_step(2, lambda: shutil.rmtree("run"))
    stopped = cli(*LEARN, "--output", "run")
    assert stopped.code == 2, stopped.err
    assert "run was deleted while the run was at work" in stopped.err
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl"}


def test_an_adapter_of_something_else_is_not_overwritten(
    finished: Path, cli: Cli, after_step: Callable[..., None]
) -> None:
    def appears() -> None:
        Path("run/adapter").mkdir()
        Path("run/adapter/letter").touch()

    after_step(3, appears)
    stopped = cli(*LEARN, "--output", "run")
    assert stopped.code == 6, stopped.err
    assert "adapter is not this run's" in stopped.err
    assert [path.name for path in Path("run/adapter").iterdir()] == ["letter"]
    shutil.rmtree("run/adapter")
    assert cli("train", "--resume", "--output", "run").code == 0
    assert weights(Path("run")) == weights(finished)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of files")
@pytest.mark.parametrize(("nbytes", "code"), [(0, 2), (8000, 6)])
def test_a_full_disk_stops_the_run(cli: Cli, nbytes: int, code: int) -> None:
    with full_disk(nbytes):
        stopped = cli(*LEARN, "--output", "run")
    assert stopped.code == code, stopped.err
    assert "File too large. Allow larger files" in stopped.err or "cannot be made" in stopped.err
    if code == 6:
        assert cli("train", "--resume", "--output", "run").code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of files")
@pytest.mark.parametrize("to", ["hf", "mlx", "peft"])
@pytest.mark.parametrize("nbytes", [100, 100_000])
def test_an_export_to_a_full_disk_leaves_nothing(
    finished: Path, cli: Cli, tmp_path: Path, to: str, nbytes: int
) -> None:
    shutil.copytree(finished, "run", symlinks=True)
    before = sorted(tmp_path.iterdir())
    with full_disk(nbytes):
        stopped = cli("export", "run", "--to", to, "--output", "out")
    assert stopped.code == (0 if to == "peft" and nbytes > 1000 else 2), stopped.err
    if stopped.code:
        assert "The export cannot be written" in stopped.err
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("command", [("plan", "--model", "tiny", "--json"), ("models",)])
def test_results_that_cannot_be_printed_are_no_bug(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        called = subprocess.run(
            [sys.executable, "-m", "edgetune", *command],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert called.returncode == 2
    assert called.stderr == "Error: A file cannot be written: No space left on device. Make room.\n"
