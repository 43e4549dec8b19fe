"""Plan files that were edited by hand: every wrong value is named, none goes through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgetune.api import plan as planned_by_code
from edgetune.cli import run
from edgetune.errors import UsageError
from edgetune.model import resolve
from edgetune.planning import FILE_NAME, plan_from_json
from edgetune.shape import ModelShape
from edgetune.workflows.planning import PlanRequest, plan_for, replanned

WRONG: tuple[Any, ...] = ("abc", [1], {"a": 1}, True, 1.5, None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plan")
    given = ["--model", "llama-7b", "--device", "rtx-4060-laptop", "--output"]
    assert run(["plan", *given, str(folder / FILE_NAME), "--quiet"]) == 0
    found = yaml.safe_load((folder / FILE_NAME).read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def _paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _paths(item, (*path, name))
    else:
        yield path


def _changed(plain: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(plain))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return dict(copy)


def test_a_plan_file_comes_back(plain: dict[str, Any]) -> None:
    shape = resolve("llama-7b").shape
    assert json.loads(json.dumps(plan_from_json(plain, shape).to_json())) == json.loads(
        json.dumps(plain)
    )


def test_a_plan_remembers_what_was_given_and_passes_it_on(plain: dict[str, Any]) -> None:
    assert plain["given"] == []
    request = PlanRequest(model="llama-7b", device="rtx-4060-laptop", choice={"rank": 4})
    plan = plan_for(request).plan
    assert plan.given == ("rank",)
    again = replanned(plan, replace(request, choice={}, training={"seed": 5}))
    assert len(again.choice) > 5
    assert again.given == ("rank", "seed")
    assert plan_for(again).plan.given == ("rank", "seed")


def test_python_code_is_refused_as_a_command_line_is() -> None:
    with pytest.raises(UsageError, match="--reparameterize"):
        planned_by_code("llama-7b", device="rtx-4060-laptop", method="prefix", prefix_hidden=4)
    with pytest.raises(UsageError, match="--measure times this machine"):
        planned_by_code("llama-7b", device="rtx-4060-laptop", measure=True)


def test_any_value_of_a_wrong_type_is_named_or_means_the_same(plain: dict[str, Any]) -> None:
    shape = resolve("llama-7b").shape
    for path in _paths({name: plain[name] for name in plain if name != "alternatives"}):
        for value in WRONG:
            said = _refusal(_changed(plain, path, value), shape)
            assert said is None or path[-1] in said or path[0] in said, (path, value, said)


def _refusal(plain: dict[str, Any], shape: ModelShape) -> str | None:
    try:
        plan_from_json(plain, shape)
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("training", "seed"), "abc", "training.seed must be a whole number; found 'abc'"),
        (("training", "packing"), 1, "training.packing must be true or false; found 1"),
        (("choice", "context"), 2.5, "choice.context must be a whole number; found 2.5"),
        (("choice", "rank"), "big", "choice.rank must be a whole number; found 'big'"),
        (("choice", "placement"), "moon", "choice.placement must be one of "),
        (("choice", "speed"), 3, "choice.speed is not known"),
        (("device",), 7, "device must be a table of settings; found 7"),
    ],
    ids=lambda item: ".".join(item) if isinstance(item, tuple) else "",
)
def test_the_message_says_what_was_found(
    plain: dict[str, Any], path: tuple[str, ...], value: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        plan_from_json(_changed(plain, path, value), resolve("llama-7b").shape)


def test_the_command_ends_with_two(plain: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    changed = _changed(plain, ("choice", "micro_batch"), "many")
    changed["model"]["ref"] = "tiny"
    (tmp_path / FILE_NAME).write_text(yaml.safe_dump(changed), "utf-8")
    data = Path(__file__).parents[2] / "examples" / "home_commands.jsonl"
    code = run(["train", "--plan", str(tmp_path / FILE_NAME), "--data", str(data)])
    assert code == 2
    assert "choice.micro_batch must be a whole number" in capsys.readouterr().err
