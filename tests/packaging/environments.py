"""Environments to install into, and programs run without this process's Python settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = "Scripts" if os.name == "nt" else "bin"


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has the dependencies, and edgetune only as it is installed."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        """Make one; the dependencies are those of this interpreter, found by a path file.

        Path files of that folder are not read, so that its own edgetune is not found.
        """
        venv.create(folder, with_pip=False)
        here = cls(folder)
        site = here.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        (Path(site.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return here

    def install(self, *what: str | Path) -> None:
        """Install something without its dependencies and without the network."""
        python = self.folder / BIN / "python"
        run(
            sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
            "--no-index", "--no-build-isolation", "--disable-pip-version-check", *what,
        )  # fmt: skip

    def run(self, program: str, *arguments: str | Path, cwd: Path | None = None) -> str:
        """Run a program of the environment and return what it prints."""
        return run(self.folder / BIN / program, *arguments, cwd=cwd or self.folder)


@dataclass(frozen=True)
class Built:
    """A tree, the source distribution of it, and the wheel that was built from that."""

    tree: Path
    sdist: Path
    wheel: Path


def copy_tree(target: Path) -> Path:
    """Copy what belongs to the project and return the copy."""
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__")

    def made_here(folder: str, names: list[str]) -> set[str]:
        at_top = {"runs", "dist"} if Path(folder) == ROOT else set()
        return ignored(folder, names) | at_top

    shutil.copytree(ROOT, target, ignore=made_here)
    return target


def build(tree: Path, output: Path, *options: str) -> None:
    """Build distributions of a tree with the tools that are installed here."""
    run(sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", output, tree)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program that must succeed, without this process's Python settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout
