"""The import contracts are kept, and a deliberate violation of each is caught."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")

DIRECTION = "The core runs in one direction"
NO_FRAMEWORK = "The core imports no array framework"
INDEPENDENT = "The backends do not know each other"
PROTOCOL = "A backend knows the vocabulary and the protocol"
DATA_ONLY = "Profiles are data"

VIOLATIONS = {
    "edgetune/units.py": ("import torch", NO_FRAMEWORK),
    "edgetune/shape.py": ("from edgetune.device import Device", DIRECTION),
    "backends/edgetune_mlx/backend.py": ("import edgetune_torch.backend", INDEPENDENT),
    "backends/edgetune_torch/session.py": ("import edgetune.runs", PROTOCOL),
    "profiles/edgetune_profiles/__init__.py": ("import edgetune.units", DATA_ONLY),
    "edgetune/stray.py": ("", DIRECTION),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages without their data."""
    for name in ("edgetune", "backends", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=_not_python)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _not_python(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (name.endswith(".py") or (Path(folder) / name).is_dir())]


def lint(folder: Path) -> tuple[int, str]:
    """Return the exit code and the report, on lines as wide as they need to be."""
    paths = [str(folder / name) for name in ("", "backends", "profiles")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "500"}
    result = subprocess.run(
        [LINT, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return result.returncode, result.stdout


def test_the_contracts_are_kept(tree: Path) -> None:
    code, report = lint(tree)
    assert code == 0, report
    assert "Contracts: 5 kept, 0 broken." in report


@pytest.mark.parametrize("file", VIOLATIONS)
def test_a_violation_is_caught(tree: Path, file: str) -> None:
    line, contract = VIOLATIONS[file]
    path = tree / file
    path.write_text(f"{path.read_text('utf-8') if path.exists() else ''}\n{line}\n", "utf-8")
    code, report = lint(tree)
    assert code == 1, report
    broken = [text for text in report.splitlines() if text.endswith(" BROKEN")]
    assert len(broken) == 1
    assert broken[0].startswith(contract)
    module = ".".join(path.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")
    named = module.removeprefix("backends.").removeprefix("profiles.")
    assert named.removeprefix("edgetune.") in report.split("Broken contracts", 1)[1]
