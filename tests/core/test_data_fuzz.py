"""Ten thousand broken and hostile files: each is accepted with a receipt that agrees, or refused.

Refused is a :class:`DataError` (exit code 4) that names the file. The files are read in processes
of their own, so that the memory it takes is known. ``EDGETUNE_FUZZ_FILES`` says how many.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_support import SHAPES, write_model
from hostile_files import LONG_FILES

from edgetune.errors import DataError

SCRIPT = Path(__file__).with_name("hostile_files.py")
FILES = int(os.environ.get("EDGETUNE_FUZZ_FILES", "1500"))
AT_ONCE = 500
MEMORY, LONG_MEMORY = 150 << 20, 400 << 20
SECONDS, LONG_SECONDS = 5, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("chatml"), SHAPES["chatml"])


def run(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.check_output(command) or "{}")
    return found


@pytest.mark.parametrize("first", range(0, FILES, AT_ONCE))
def test_a_hostile_file_is_accepted_or_refused(first, model, tmp_path):
    run("write", tmp_path, first, first + AT_ONCE)
    found = run("read", tmp_path, first, first + AT_ONCE, model)
    assert found["faults"] == {}
    assert found["accepted"] > AT_ONCE / 10
    assert found["refused"] > AT_ONCE / 10
    assert found["grown_bytes"] < MEMORY
    assert found["slowest_seconds"] < SECONDS
    assert DataError.exit_code == 4


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(LONG_FILES)))
def test_a_file_of_endless_lines_is_refused_in_little_memory(number, model, tmp_path):
    name, content = LONG_FILES[number]
    (tmp_path / name).write_bytes(content())
    found = run("read-long", tmp_path, number, model)
    assert found["faults"] == {}
    assert found["refused"] == 1
    assert found["grown_bytes"] < LONG_MEMORY
    assert found["slowest_seconds"] < LONG_SECONDS
