"""The public functions, from Python code."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgetune
import edgetune_mlx
import edgetune_profiles
import edgetune_torch
from edgetune import api, api_adapters
from edgetune.errors import StoppedError, UsageError
from edgetune.events import Evaluated, Stepped

PACKAGES: tuple[Any, ...] = (edgetune, edgetune_torch, edgetune_mlx, edgetune_profiles)
ROWS = [{"prompt": f"{n} and one is", "completion": str(n + 1)} for n in range(40)]
SHORT: dict[str, Any] = {"steps": 4, "rank": 2, "context": 64}

USER = """
from pathlib import Path

import edgetune

found = edgetune.plan("tiny", memory="1GB", rank=4, targets=["q+v"])
print(found.memory.peak_bytes + 1)


def short(folder: Path) -> str:
    rows = [{"prompt": "a", "completion": "b"}]
    with edgetune.train("tiny", data=rows, output=folder, steps=2) as run:
        loss: float = run.evaluate(rows).tuned.loss
        moved: float = edgetune.study("weights", folder).matrices[0].magnitude
        shared: float = edgetune.study("directions", folder, folder).inputs["q_proj"][0][0]
        cost: float = edgetune.study("blocks", folder, data=rows).whole
        both: int = edgetune.combine([folder, folder], folder / "both").rank
        print(moved, shared, cost, both)
        return run.generate("Hello", max_tokens=3) + str(loss)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained from Python, with what happened."""
    path = tmp_path_factory.mktemp("runs") / "run"
    seen: list[object] = []
    run = edgetune.train("tiny", data=ROWS, output=path, on_event=seen.append, **SHORT)
    assert run.folder == path
    assert [type(event) for event in seen].count(Stepped) == SHORT["steps"]
    assert any(isinstance(event, Evaluated) for event in seen)
    return path


def test_no_module_shadows_a_function() -> None:
    for module in pkgutil.walk_packages(edgetune.__path__, "edgetune."):
        if module.name != "edgetune.__main__":
            importlib.import_module(module.name)

    assert edgetune.plan("llama-7b", device="rtx-4060-laptop", context=512).fits
    for name in set(edgetune.__all__) - {"__version__"}:
        own = getattr(api, name, None) or getattr(api_adapters, name)
        assert getattr(edgetune, name) is own
    assert set(edgetune.__all__) <= set(dir(edgetune))


def test_the_package_itself_imports_nothing() -> None:
    code = "import sys, edgetune; print([x for x in sys.modules if x.startswith('edgetune.')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "['edgetune.version']"


def test_the_examples_of_the_docstrings_hold() -> None:
    for module, least in ((api, 10), (api_adapters, 12)):
        results = doctest.testmod(module)
        assert results.attempted >= least
        assert results.failed == 0


def test_studies_and_combinations_say_what_they_need(folder: Path, tmp_path: Path) -> None:
    wrong: tuple[tuple[Any, str], ...] = (
        (lambda study, _: study("blocks", folder), "needs rows: data="),
        (lambda study, _: study("directions", folder), "needs a second adapter"),
        (lambda study, _: study("intrinsic-dimension", "tiny"), "needs rows: data="),
        (
            lambda study, _: study("robustness", folder, data=ROWS[:2]),
            "needs rows: data= and clean=",
        ),
        (lambda study, _: study("blocks", folder, data=ROWS[:2], spans=0), "2 or more; found 0"),
        (lambda study, _: study("weights", folder, clean=ROWS[:2]), "reads no clean rows"),
        (lambda study, _: study("weights", folder, folder), "reads no second adapter"),
        (lambda study, _: study("directions", folder, folder, data=ROWS[:2]), "reads no rows"),
        (lambda study, _: study("layers", folder), "There are: blocks, directions, intr"),
        (lambda _, combine: combine([folder], tmp_path / "x", how="sum"), "There are: linear"),
        (lambda _, combine: combine(folder, tmp_path / "x"), "takes a list of adapters"),
        (lambda _, combine: combine([], tmp_path / "x"), "found an empty one"),
    )
    for call, message in wrong:
        with pytest.raises(UsageError, match=message):
            call(edgetune.study, edgetune.combine)
    told: list[tuple[int, int]] = []
    edgetune.study(
        "blocks", folder, data=ROWS[:2], spans=2, tell=lambda done, of: told.append((done, of))
    )
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)

    exec(compile(example, "README.md", "exec"), {})

    assert (tmp_path / "counting" / "model.safetensors").is_file()


def test_code_that_uses_it_is_typed(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    # as an installed package, whose own lines are not judged: an editable one is found by a hook
    # that mypy does not run
    options = ["--strict", "--no-incremental", "--follow-imports", "silent"]
    command = [sys.executable, "-m", "mypy", *options, "user.py"]
    places = os.pathsep.join(str(Path(package.__file__).parents[1]) for package in PACKAGES)
    shown = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "MYPYPATH": places},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stdout


def test_a_run_is_used_and_exported(folder: Path, tmp_path: Path) -> None:
    with edgetune.load_run(folder) as run:
        found = run.evaluate(ROWS[:8], exact_match=True)
        assert found.tuned.rows == found.base.rows == 8
        assert found.tuned.exact_match is not None
        answer = run.generate("3 and one is", max_tokens=4)
        assert answer == "".join(run.stream("3 and one is", max_tokens=4))
        chat = [{"role": "user", "content": "3 and one is"}]
        assert run.generate(chat, max_tokens=4) == answer
        exported = run.export(tmp_path / "peft")
        assert (exported.exported.folder / "adapter_model.safetensors").is_file()
        assert run.generate("3 and one is", max_tokens=4) == answer  # opened again
    merged = edgetune.export(folder, tmp_path / "merged", to="hf")
    assert merged.check is not None
    adapter = edgetune.load_run(folder / "adapter", model="tiny")
    assert adapter.generate("3 and one is", max_tokens=4) == answer
    adapter.close()


def test_rows_that_are_given_lie_in_the_run_folder(folder: Path) -> None:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert str(folder / "rows.jsonl") in (folder / "plan.yaml").read_text()


def test_a_run_that_was_stopped_goes_on(folder: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    def note(event: object) -> None:
        if isinstance(event, Stepped):
            steps.append(event.step)

    with pytest.raises(StoppedError):
        edgetune.train(
            "tiny", data=ROWS, output=tmp_path / "run", on_event=note, stop=lambda: len(steps) > 1,
            verdict=False, samples=0, **SHORT,
        )  # fmt: skip
    assert steps == [1, 2]
    run = edgetune.resume(tmp_path / "run", on_event=note)
    assert steps == [1, 2, 3, 4]
    mine, whole = (x / "adapter_model.safetensors" for x in (run.adapter, folder / "adapter"))
    assert mine.read_bytes() == whole.read_bytes()
    ends = [tmp_path / "run" / name for name in ("verdict.json", "samples.json")]
    assert not any(file.exists() for file in ends), "as it began"
    edgetune.resume(tmp_path / "run", verdict=True)
    assert [file.exists() for file in ends] == [True, False]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_speed": 1}, "no setting learning_speed"),
        ({"rank": "four"}, "rank must be a whole number"),
        ({"rank": 0}, "--rank must be"),
        ({"memory": "much"}, "much"),
        ({"data": [{"prompt": "a"}, 3]}, "Row 2 must be a table"),
        ({"data": [{"prompt": {1, 2}}]}, "Row 1 cannot be written as JSON"),
    ],
)
def test_bad_input_is_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        edgetune.plan("tiny", **settings)
