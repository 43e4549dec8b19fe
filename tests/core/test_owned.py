"""What a living process makes is its own; what a dead one left is swept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgetune.owned import OLD, YOUNG, ScratchFolder, own_folder, own_path, replacing_shared, sweep

HOLDER = """
import sys
from pathlib import Path
from edgetune.owned import own_folder, replacing_shared
place = Path(sys.argv[1]) / "x"
with own_folder(place) as folder, replacing_shared(place) as file:
    (folder / "half").touch()
    print(folder, file, sep="\\n", flush=True)
    sys.stdin.read()
"""


def age(path: Path, seconds: float) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


def test_no_two_places_are_the_same(tmp_path: Path) -> None:
    assert len({own_path(tmp_path / "x") for _ in range(1000)}) == 1000


def test_a_folder_is_removed_unless_it_was_renamed(tmp_path: Path) -> None:
    with own_folder(tmp_path / "x") as folder:
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []
    with own_folder(tmp_path / "x") as folder:
        folder.rename(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_is_replaced_or_left(tmp_path: Path) -> None:
    with replacing_shared(tmp_path / "x") as file:
        file.write_text("new")
    with pytest.raises(KeyError), replacing_shared(tmp_path / "x") as file:
        raise KeyError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "new")]


def test_only_what_the_dead_left_is_swept(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    places = [Path(process.stdout.readline().strip()) for _ in range(2)]
    (tmp_path / "other").touch()
    for path in places:
        age(path, 2 * OLD)
    sweep(tmp_path)
    assert all(path.exists() for path in places), "a living process holds them"

    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in places:
        os.utime(path)
    sweep(tmp_path)
    assert all(path.exists() for path in places), "they may be another's that is just beginning"

    for path in places:
        age(path, 2 * YOUNG)
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    process.communicate()


def test_a_folder_without_a_lock_is_swept_when_it_is_old(tmp_path: Path) -> None:
    place = own_path(tmp_path / "x")
    place.mkdir()
    age(place, 2 * YOUNG)
    sweep(tmp_path)
    assert place.exists()
    age(place, 2 * OLD)
    sweep(tmp_path)
    assert not place.exists()


def test_scratch_is_private_and_sweeps_its_own_kind_alone(tmp_path: Path) -> None:
    (tmp_path / ".others.partial").touch()
    age(tmp_path / ".others.partial", 2 * OLD)
    with ScratchFolder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == [".others.partial"]
    kept = ScratchFolder(tmp_path)
    del kept
    assert [path.name for path in tmp_path.iterdir()] == [".others.partial"]
