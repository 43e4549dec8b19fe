"""Whatever a disk does to a run is told, and what was saved before is whole and goes on."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disks import failing_disk, full_disk
from recorded import Recorded, make_plan

from edgetune.errors import DiskError, EdgetuneError, StoppedError, UsageError
from edgetune.events import Event, SaveDue, Stepped
from edgetune.planning import Plan
from edgetune.runs import RunFolder, latest, newest_whole, promote

STEPS = 3


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    model = tmp_path_factory.mktemp("model")
    return make_plan(model, steps=STEPS, eval_every=1, save_every=1, keep=1)


@pytest.fixture(scope="module")
def expected(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run comes to whose disk is as it should be."""
    return Recorded.start(plan, tmp_path_factory.mktemp("whole") / "run").train().end()


def failed(work: Callable[[], object]) -> EdgetuneError | None:
    """Return what a run ends with, None if with its last step."""
    try:
        work()
    except (DiskError, UsageError) as error:
        return error
    return None


def end_of(path: Path, plan: Plan) -> dict[str, Any]:
    """Return what a run comes to after its disk was mended: resumed, or begun anew."""
    if not path.exists():
        return Recorded.start(plan, path).train().end()
    found, refused = newest_whole(path / "checkpoints", plan)
    assert refused == ()
    if found is None:
        shutil.rmtree(path)
        return Recorded.start(plan, path).train().end()
    return Recorded.over(plan, RunFolder(path)).resumed().end()


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.long)])
def test_every_write_may_fail(
    plan: Plan, expected: dict[str, Any], tmp_path: Path, stride: int
) -> None:
    disk, number, operations = failing_disk(), 1, []
    while not operations or operations[-1]:
        path, kind = tmp_path / str(number), (errno.ENOSPC, errno.EIO)[number % 2]
        disk.fail(number, kind)
        error = failed(lambda: Recorded.start(plan, path).train())  # noqa: B023
        disk.left = 0
        operations.append(disk.failed)
        if error is not None:
            assert error.exit_code == DiskError.exit_code
            assert str(path) in str(error)
        assert end_of(path, plan) == expected
        assert not list(tmp_path.glob(".*"))
        number += stride
    assert number > 50


@pytest.mark.parametrize("nbytes", [0, 100, 1000, 1700, 10**6])
def test_every_file_may_be_cut_off(
    plan: Plan, expected: dict[str, Any], tmp_path: Path, nbytes: int
) -> None:
    path = tmp_path / "run"
    with full_disk(nbytes):
        error = failed(lambda: Recorded.start(plan, path).train())
    assert (error is None) == (nbytes == 10**6)
    assert end_of(path, plan) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def interrupted(run: Recorded, when: Callable[[Event], bool], act: Callable[[], None]) -> DiskError:
    """Return what a held run ends with to which something is done before an event is recorded."""
    acted = False
    with run.folder.locked():
        for event in run.events():
            if not acted and when(event):
                act()
                acted = True
            try:
                run.recorder.handle(event)
            except DiskError as error:
                assert acted
                return error
    raise AssertionError("nothing was noticed")


MOMENTS = {
    "a step": lambda event: isinstance(event, Stepped) and event.step == 2,
    "a checkpoint": lambda event: isinstance(event, SaveDue) and event.state.step == 2,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_folder_that_was_moved_is_found_and_goes_on(
    plan: Plan, expected: dict[str, Any], tmp_path: Path, moment: str
) -> None:
    run, place = Recorded.start(plan, tmp_path / "run"), tmp_path / "elsewhere"
    error = interrupted(run, MOMENTS[moment], lambda: shutil.move(tmp_path / "run", place))
    assert f"{tmp_path / 'run'} was moved to {place}" in str(error)
    assert run.folder.path == place
    assert str(place) in run.folder.resume_command
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert end_of(place, plan) == expected


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_folder_that_was_deleted_is_not_made_again(
    plan: Plan, tmp_path: Path, moment: str
) -> None:
    run = Recorded.start(plan, tmp_path / "run")
    error = interrupted(run, MOMENTS[moment], lambda: shutil.rmtree(tmp_path / "run"))
    assert f"{tmp_path / 'run'} was deleted while" in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_folder_of_another_run_at_the_same_place_is_left_alone(
    plan: Plan, tmp_path: Path, moment: str
) -> None:
    run, path = Recorded.start(plan, tmp_path / "run"), tmp_path / "run"

    def replace() -> None:
        shutil.move(path, tmp_path / "elsewhere")
        (path / "checkpoints").mkdir(parents=True)

    assert "was moved to" in str(interrupted(run, MOMENTS[moment], replace))
    assert [item.name for item in path.iterdir()] == ["checkpoints"]
    assert list((path / "checkpoints").iterdir()) == []


def test_an_adapter_of_something_else_is_left_alone(plan: Plan, tmp_path: Path) -> None:
    run = Recorded.start(plan, tmp_path / "run").train()
    source = latest(run.folder.checkpoints)
    run.folder.adapter.mkdir()
    (run.folder.adapter / "letter").touch()
    with pytest.raises(StoppedError, match="is not this run's adapter") as caught:
        promote(run.folder, source)
    assert str(source) in str(caught.value)
    assert [path.name for path in run.folder.adapter.iterdir()] == ["letter"]
    shutil.rmtree(run.folder.adapter)
    assert promote(run.folder, source)
    assert not promote(run.folder, source)
    for file in run.folder.adapter.iterdir():
        assert file.read_bytes() == (source / file.name).read_bytes()
    (run.folder.adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(StoppedError, match="is not this run's adapter"):
        promote(run.folder, source)


def test_an_adapter_that_appears_at_the_last_moment_is_left_alone(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Recorded.start(plan, tmp_path / "run").train()
    replace = Path.replace

    def appears(path: Path, target: Path) -> Path:
        target.mkdir(exist_ok=True)
        (target / "letter").touch()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", appears)
    with pytest.raises(StoppedError, match="is not this run's adapter"):
        promote(run.folder, latest(run.folder.checkpoints))
    assert [path.name for path in run.folder.adapter.iterdir()] == ["letter"]
