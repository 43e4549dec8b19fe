"""Kernels in C that come or go between two halves of a run: it ends with the same bits, or says so."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rows import call, finish, start, write_rows
from tiny_runs import EXAMPLES, LEARN, learned, lines, wait_for_steps

from edgetune.files import load_json
from edgetune.runs.state import LARGEST
from edgetune_torch import cpu_kernels

RUN = (*LEARN, "--compute-dtype", "bfloat16", "--no-verdict", "--samples", "0")

pytestmark = pytest.mark.skipif(
    cpu_kernels.library() is None, reason="no processor with AVX512-BF16, or no compiler"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", lines(EXAMPLES / "home_commands.jsonl")[:40])
    return tmp_path


@contextmanager
def no_compiler(folder: Path) -> Iterator[None]:
    """Have nothing that is started find a compiler, or what was compiled before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder / "nothing"))
        patch.setenv("EDGETUNE_CACHE", str(folder / "cache"))
        yield


def killed(folder: Path, name: str) -> Path:
    """Return a run that was killed behind its first checkpoint."""
    process = start(*RUN, "--output", name, cwd=folder)
    wait_for_steps(folder / name, 4)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    return folder / name


def kernels(run: Path, step: int = 8) -> str | None:
    """Return what the state after a step says."""
    state = load_json(run / "checkpoints" / f"step-{step:06}" / "state.json", LARGEST)
    told: str | None = state["versions"].get("kernels")
    return told


def test_a_run_that_began_without_kernels_goes_on_without_them(folder: Path) -> None:
    with no_compiler(folder):
        assert call(*RUN, "--output", "whole", cwd=folder).code == 0
        halves = killed(folder, "halves")
    again = call("train", "--resume", "--output", "halves", cwd=folder)

    assert again.code == 0, again.err
    said = [line for line in again.err.splitlines() if "to the same bits" in line]
    assert len(said) == 1
    assert "The run began without kernels of edgetune's own and goes on so" in said[0]
    assert learned(halves) == learned(folder / "whole")
    assert kernels(halves) is None
    with_them = folder / "with"
    assert call(*RUN, "--output", with_them.name, cwd=folder).code == 0
    assert str(kernels(with_them)).startswith("C ")
    assert learned(with_them)["metrics"] != learned(halves)["metrics"]  # they round otherwise


def test_kernels_that_are_gone_are_told(folder: Path) -> None:
    halves = killed(folder, "halves")
    before = kernels(halves, 3)
    with no_compiler(folder):
        again = call("train", "--resume", "--output", "halves", cwd=folder)

    assert again.code == 0, again.err
    told = f"with kernels of edgetune's own ({before}), which cannot be had here now"
    assert sum(told in line for line in again.err.splitlines()) == 1
    assert "Versions changed" not in again.err
    assert kernels(halves) is None
    notes = [line for line in lines(halves / "journal.jsonl") if line["what"] == "kernels"]
    assert len(notes) == 1


def losses(record: Path) -> list[tuple[float, float]]:
    """Return what races came to."""
    return [(race["loss"], race["perplexity"]) for race in load_json(record, LARGEST)["races"]]


def test_races_before_a_run_go_on_as_they_began(folder: Path) -> None:
    rate = RUN.index("--learning-rate")
    race = (*RUN[:rate], *RUN[rate + 2 :], "--search", "lr", "--steps", "20")
    with no_compiler(folder):
        assert call(*race, "--output", "whole", cwd=folder).code == 0
        process = start(*race, "--output", "halves", cwd=folder)
        record = folder / "halves" / "search.json"
        while not record.exists():
            assert process.poll() is None
        process.kill()
        finish(process)
    again = call("train", "--resume", "--output", "halves", cwd=folder)

    assert again.code == 0, again.err
    assert "to the same bits" in again.err
    assert losses(record) == losses(folder / "whole" / "search.json")
    assert learned(folder / "halves") == learned(folder / "whole")
