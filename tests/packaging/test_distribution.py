"""What users install: from the source distribution, from its wheel, and in place."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from environments import Built, Environment, build, copy_tree

from edgetune import __version__

PACKAGES = {
    "edgetune": "edgetune",
    "edgetune_torch": "backends/edgetune_torch",
    "edgetune_mlx": "backends/edgetune_mlx",
    "edgetune_profiles": "profiles/edgetune_profiles",
}
INFO = f"edgetune-{__version__}.dist-info"
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel."""
    environment = Environment.make(tmp_path_factory.mktemp("installed"))
    environment.install(built.wheel)
    return environment


def files_of(folder: Path) -> set[str]:
    """Return the files below a folder that are not made by running it."""
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_holds_the_packages_and_nothing_else(built: Built) -> None:
    expected = {
        f"{package}/{name}"
        for package, place in PACKAGES.items()
        for name in files_of(built.tree / place)
    }
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    assert {name for name in names if not name.startswith(f"{INFO}/")} == expected
    assert {
        "edgetune_profiles/tiny/model.safetensors",
        "edgetune_profiles/tiny/tokenizer.json",
        "edgetune_profiles/models/llama-7b.yaml",
        "edgetune_profiles/devices/rtx-4090.yaml",
    } <= expected
    assert {name.removeprefix(f"{INFO}/") for name in names - expected} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip


def test_the_wheel_is_small_and_runs_anywhere(built: Built) -> None:
    assert built.wheel.name == f"edgetune-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(built.wheel) as wheel:
        tiny = [item for item in wheel.infolist() if "/tiny/" in item.filename]
    assert sum(item.compress_size for item in tiny) <= 8 * MEGABYTE


def test_the_metadata_says_what_it_is(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        metadata = message_from_string(wheel.read(f"{INFO}/METADATA").decode())
        entries = wheel.read(f"{INFO}/entry_points.txt").decode()
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    needed = [text for text in metadata.get_all("Requires-Dist") if "extra" not in text]
    marked = {text.split(">")[0] for text in needed if ";" in text}
    assert marked == {"mlx", "mlx-lm", "torch", "bitsandbytes"}
    assert "edgetune = edgetune.cli:main" in entries
    assert "torch = edgetune_torch.backend:TorchBackend" in entries
    assert "mlx = edgetune_mlx.backend:MlxBackend" in entries


def test_the_source_distribution_can_be_tested_and_is_whole(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    for place in (*PACKAGES.values(), "tests", "examples", "tools"):
        assert {f"{place}/{name}" for name in files_of(built.tree / place)} <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "constraints.txt", "Makefile"} <= names
    assert not [name for name in names if ".venv" in name or "__pycache__" in name]


def test_a_wheel_from_the_tree_is_the_one_from_the_source_distribution(
    built: Built, tmp_path: Path
) -> None:
    build(built.tree, tmp_path, "--wheel")
    (other,) = tmp_path.glob("*.whl")
    assert other.read_bytes() == built.wheel.read_bytes()


def test_the_installed_program_plans(installed: Environment, tmp_path: Path) -> None:
    plan = json.loads(installed.run("edgetune", "plan", "--model", "tiny", "--json", cwd=tmp_path))
    assert plan["fits"]
    assert not list(tmp_path.iterdir())


def test_the_installed_program_is_the_installed_one(installed: Environment) -> None:
    code = f"import {', '.join(PACKAGES)}\n" + "".join(f"print({p}.__file__)\n" for p in PACKAGES)
    for place in installed.run("python", "-c", code).splitlines():
        assert Path(place).is_relative_to(installed.folder)


def test_the_installed_program_knows_its_models_and_devices(
    built: Built, installed: Environment
) -> None:
    assert "tiny" in installed.run("edgetune", "models")
    found = json.loads(installed.run("edgetune", "devices", "--all", "--json"))
    assert found["backends"].keys() == {"torch", "mlx"}
    assert found["backends"]["torch"]["value"]
    profiles = files_of(built.tree / "profiles" / "edgetune_profiles" / "devices")
    assert len(found["profiles"]) == len(profiles)


def test_an_install_in_place_sees_what_changes(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    environment = Environment.make(tmp_path / "venv")
    environment.install("--editable", tree)
    assert "tiny" in environment.run("edgetune", "models")
    units = tree / "edgetune" / "units.py"
    units.write_text(units.read_text("utf-8") + "CHANGED = 'yes'\n", "utf-8")
    (tree / "backends" / "edgetune_torch" / "added.py").write_text("ADDED = 'too'\n")
    profiles = tree / "profiles" / "edgetune_profiles" / "models"
    shutil.copy(profiles / "gpt2.yaml", profiles / "gpt2-again.yaml")
    code = (
        "import edgetune.units, edgetune_torch.added as a; print(edgetune.units.CHANGED, a.ADDED)"
    )
    assert environment.run("python", "-c", code) == "yes too\n"
    assert "gpt2-again" in environment.run("edgetune", "models")
