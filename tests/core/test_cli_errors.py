"""What a user can do wrong: one clear message, the right exit code, nothing created."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from rows import Cli, chat, write_rows

from edgetune import errors
from edgetune.backend import GenerateOptions, TornStateError
from edgetune.cli import COMMANDS
from edgetune.errors import EdgetuneError
from edgetune.settings.spec import knobs
from edgetune.workflows.settings import knob_specs
from edgetune.workflows.unread import INSTEAD

ROOT = Path(__file__).parents[2]
TRAIN = ("train", "--model", "tiny")
PLAN = ("plan", "--model", "tiny")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in an empty folder, with nothing in the cache of models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    return Cli(capsys)


def refused(cli: Cli, *arguments: str | Path) -> tuple[int, str]:
    """Call a command that must fail and return its exit code and its message."""
    before = tree()
    called = cli(*arguments)
    assert called.out == ""
    message = called.err.removeprefix("Reading rows\n")  # told if it is slow
    assert message.startswith("Error: ")
    assert called.err.count("Error:") == 1
    assert "Traceback" not in called.err
    assert tree() == before
    return called.code, called.err


def refused_by_click(cli: Cli, *arguments: str | Path) -> str:
    """Call a command that is not even understood and return the message."""
    before = tree()
    called = cli(*arguments)
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith("Usage: ")
    assert called.err.count("\nError: ") == 1
    assert tree() == before
    return called.err.split("\nError: ")[1]


def tree() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


DATA_FILES: dict[str, tuple[list[Any] | str | None, list[str]]] = {
    "missing.jsonl": (None, ["missing.jsonl"]),
    "empty.jsonl": ("", ["empty.jsonl has no rows"]),
    "broken.jsonl": (f'{json.dumps(chat("a", "b"))}\n{{"messages": [\n', ["broken.jsonl:2", "JSON"]),
    "binary.jsonl": ("\0\x01\x02\n", ["binary.jsonl:1"]),
    "other.jsonl": ([chat("a", "b"), {"comment": "c"}], ["other.jsonl:2", "comment"]),
    "silent.jsonl": ([chat("a", "b"), chat("a", "")], ["silent.jsonl:2"]),
    "mixed.jsonl": ([chat("a", "b"), {"text": "c"}], ["mixed.jsonl:2", "text", "messages"]),
    "textless.jsonl": ([{"text": "a b"}, {"text": ""}], ["textless.jsonl:2"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_FILES)
@pytest.mark.parametrize(
    "command",
    [(*TRAIN, "--output", "run", "--data"), (*PLAN, "--data"), ("data", "check")],
    ids=["train", "plan", "data check"],
)
def test_bad_data(cli: Cli, command: tuple[str, ...], name: str) -> None:
    content, said = DATA_FILES[name]
    if isinstance(content, str):
        Path(name).write_text(content)
    elif content is not None:
        write_rows(Path(name), content)
    code, message = refused(cli, *command, name)
    assert code == 4
    assert all(text in message for text in said), message


def test_all_problems_of_a_file_are_told_at_once(cli: Cli) -> None:
    rows = [chat("a", "b"), {"messages": []}, chat("c", "d"), {"messages": "no"}]
    _, message = refused(cli, "data", "check", write_rows(Path("rows.jsonl"), rows))
    assert re.findall(r"rows\.jsonl:(\d+)", message) == ["2", "4"]


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("lama-7b", ["'lama-7b'", "llama-7b", "llama-13b"]),
        ("nothing-like-it", ["'nothing-like-it'", "`edgetune models`"]),
        ("./nowhere", ["./nowhere"]),
        ("a-file", ["a-file is a file", "config.json"]),
        ("a-folder", ["a-folder has no config.json"]),
        ("org/model", ["org/model", "not on this machine", "edgetune fetch org/model", "--model"]),
    ],
)
def test_unknown_models(cli: Cli, ref: str, said: list[str]) -> None:
    Path("a-file").touch()
    Path("a-folder").mkdir()
    data = write_rows(Path("rows.jsonl"))
    for command in (("plan",), ("train", "--data", data, "--output", "run")):
        code, message = refused(cli, *command, "--model", ref)
        assert code == 5
        assert all(text in message for text in said), message


def test_a_profile_without_weights_can_be_planned_and_not_trained(cli: Cli) -> None:
    data = write_rows(Path("rows.jsonl"))
    code, message = refused(cli, "train", "--model", "llama-7b", "--data", data)
    assert code == 5
    assert "llama-7b" in message
    assert "not on this machine" in message
    assert "`edgetune fetch huggyllama/llama-7b`" in message
    assert "--model FOLDER" in message
    assert cli("plan", "--model", "llama-7b", "--device", "rtx-4090", "-q").code == 0


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("file/run", "Not a directory"),
        ("file", "is not a folder"),
        (".", "the folder that you are in"),
        ("..", "the folder that you are in, or one above it"),
        ("/", "the folder that you are in, or one above it"),
        ("full/..", "the folder that you are in"),
        ("", "is empty"),
        ("nowhere-link", "is a link to nowhere, where nothing is"),
        ("file-link", "is not a folder"),
        ("full-link", "is not empty"),
        ("here-link", "the folder that you are in"),
        ("circle", "cannot be made"),
        ("circle/run", "cannot be made"),
        ("bad\udcff", "its name is not UTF-8"),
        ("full", "is not empty"),
        ("old-run", "exists already"),
        pytest.param("/proc/run", "cannot be made", marks=pytest.mark.skipif(
            not Path("/proc").is_dir(), reason="no folder that even root cannot write")),
    ],
)  # fmt: skip
def test_a_run_folder_that_cannot_be_made(cli: Cli, output: str, said: str) -> None:
    Path("file").touch()
    for folder, inside in (("full", "letter"), ("old-run", "plan.yaml")):
        Path(folder).mkdir()
        (Path(folder) / inside).touch()
    links = {"nowhere": "nowhere", "file": "file", "full": "full", "here": Path.cwd()}
    for name, target in links.items():
        Path(f"{name}-link").symlink_to(target)
    Path("circle").symlink_to("circle")
    data = write_rows(Path("rows.jsonl"))
    code, message = refused(cli, *TRAIN, "--data", data, "--output", output)
    assert code == 2
    assert said in message
    assert "--output" in message


def test_a_name_that_is_too_long(cli: Cli) -> None:
    write_rows(Path("rows.jsonl"))
    for command in (
        (*TRAIN, "--data", "rows.jsonl", "--output"), (*TRAIN, "--dry-run", "--data"),
        ("train", "--data", "rows.jsonl", "--plan"), (*PLAN, "--output"), ("data", "check"),
        ("train", "--resume", "--output"), ("eval", "--data", "rows.jsonl"), ("generate",),
    ):  # fmt: skip
        code, message = refused(cli, *command, "x" * 300)
        assert code == 2
        assert "cannot be looked at: File name too long" in message
        assert len(message) < 200
    code, message = refused(cli, *PLAN, "--data", "rows.jsonl", "--validation-data", "x" * 300)
    assert (code, len(message) < 200) == (4, True)
    code, message = refused(cli, *PLAN, "--data", "rows.jsonl", "--validation-data", "~nouser/x")
    assert (code, "~nouser/x" in message) == (2, True)


def test_a_plan_is_not_written_over_something_else(cli: Cli) -> None:
    rows = write_rows(Path("rows.jsonl"))
    code, message = refused(cli, *PLAN, "--output", rows)
    assert (code, "is not a plan file, so that it is not overwritten" in message) == (2, True)
    assert len(rows.read_text().splitlines()) == 20
    for _ in range(2):  # a plan is
        assert cli(*PLAN, "--output", "plan.yaml", "-q").code == 0


WRITING = {
    "plan": (*PLAN, "--output"),
    "report": ("report", "run", "--output"),
    "compare": ("compare", "run", "--html"),
    "blocks": ("study", "blocks", "run", "--data", "rows.jsonl", "--html"),
    "directions": ("study", "directions", "run", "run", "--html"),
    "weights": ("study", "weights", "run", "--html"),
    "dimension": ("study", "intrinsic-dimension", "--data", "rows.jsonl", "--html"),
    "robustness": ("study", "robustness", "run", "--data", "a", "--clean", "a", "--html"),
}
"""Every command that writes one named file, in the place of one that is there."""


@pytest.mark.skipif(os.name == "nt", reason="pipes and sockets have names")
@pytest.mark.parametrize("command", WRITING.values(), ids=WRITING)
@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", "is empty"),
        (".", "it is a folder"),
        ("/", "it is a folder"),
        ("folder", "it is a folder"),
        ("pipe", "not a regular file"),
        ("socket", "not a regular file"),
        ("pipe-link", "not a regular file"),
        ("nowhere-link", "a link to nowhere, where nothing is"),
        ("circle", "circle is not written"),
        ("nowhere/file", "there is no folder"),
        ("rows.jsonl", "is not a"),
        ("rows-link", "is not a"),
        ("run/plan.yaml", "belongs to the run"),
        ("run/.lock", "belongs to the run"),
        ("run/metrics.jsonl", "belongs to the run"),
        ("run/adapter/adapter_model.safetensors", "belongs to the run"),
        ("run/adapter/page.html", "belongs to the run"),
        ("run-link/receipt.json", "belongs to the run"),
    ],
)
def test_what_a_command_must_not_replace(
    cli: Cli, command: tuple[str, ...], output: str, said: str
) -> None:
    write_rows(Path("rows.jsonl"))
    for folder in ("folder", "run/adapter"):
        Path(folder).mkdir(parents=True)
    for name in ("plan.yaml", "receipt.json", ".lock", "adapter/adapter_model.safetensors"):
        (Path("run") / name).touch()
    os.mkfifo("pipe")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind("socket")
    for name, target in {"rows": "rows.jsonl"}.items() | {
        (x, x) for x in ("run", "pipe", "nowhere")
    }:
        Path(f"{name}-link").symlink_to(target)
    Path("circle").symlink_to("circle")
    code, message = refused(cli, *command, output)
    assert (code, said in message) == (2, True), message
    assert command[-1] in message
    assert message.count("\n") == 1


def test_a_plan_is_written_where_a_link_leads(cli: Cli) -> None:
    Path("link.yaml").symlink_to("plan.yaml")
    Path("plan.yaml").touch()
    assert cli(*PLAN, "--output", "link.yaml", "-q").code == 0
    assert Path("link.yaml").is_symlink()
    assert "choice:" in Path("plan.yaml").read_text()


EMPTY = [
    *((*PLAN, flag, "") for flag in ("--data", "--plan", "--config", "--validation-data")),
    ("plan", "--model", ""),
    *((*TRAIN, flag, "") for flag in ("--data", "--plan", "--config", "--from", "--output")),
    (*TRAIN, "--data", "rows.jsonl", "--validation-data", ""),
    ("data", "check", ""),
    ("data", "check", "rows.jsonl", "--model", ""),
    ("data", "check", "rows.jsonl", "--validation-data", ""),
    *((name, "") for name in ("inspect", "similar", "report", "view", "fetch", "chat", "serve", "compare")),
    ("generate", "", "-p", "a"),
    ("generate", "tiny", "-p", "a", "--model", ""),
    ("eval", "", "--data", "rows.jsonl"),
    ("eval", "tiny", "--data", ""),
    ("compare", "--methods", "lora", "--output", ""),
    ("compare", "run", "--held-out", ""),
    ("combine", "run", "", "--output", "out"),
    ("combine", "run", "--output", ""),
    ("export", "run", "--to", "hf", "--output", ""),
    ("export", "", "--to", "hf", "--output", "out"),
    ("export", "run", "--to", "hf", "--output", "out", "--data", ""),
    ("study", "blocks", "", "--data", "rows.jsonl"),
    ("study", "robustness", "run", "--data", "rows.jsonl", "--clean", ""),
]  # fmt: skip


@pytest.mark.parametrize("arguments", EMPTY, ids=" ".join)
def test_an_empty_name_is_not_the_folder_that_one_is_in(
    cli: Cli, arguments: tuple[str, ...]
) -> None:
    write_rows(Path("rows.jsonl"))
    code, message = refused(cli, *arguments)
    before = arguments[arguments.index("") - 1]
    assert code == 2
    assert message.endswith("is empty. Give a name.\n")
    assert not before.startswith("--") or message.startswith(f"Error: {before} is")


def test_an_old_run_says_how_to_go_on(cli: Cli) -> None:
    Path("old run").mkdir()
    (Path("old run") / "plan.yaml").touch()
    _, message = refused(cli, *TRAIN, "--data", "rows.jsonl", "--output", "old run")
    assert "edgetune train --resume --output 'old run'" in message


@pytest.mark.parametrize("output", ["file/plan.yaml", "folder", "nowhere/plan.yaml"])
def test_a_plan_file_that_cannot_be_written(cli: Cli, output: str) -> None:
    Path("file").touch()
    Path("folder").mkdir()
    code, message = refused(cli, *PLAN, "--output", output)
    assert code == 2
    assert output in message


COMBINATIONS: list[tuple[tuple[str, ...], list[str]]] = [
    ((*PLAN, "--steps", "3", "--epochs", "2"), ["--steps", "--epochs"]),
    ((*TRAIN, "--plan", "plan.yaml", "--data", "rows.jsonl"), ["--plan", "--model"]),
    (("train", "--data", "rows.jsonl"), ["--model", "--plan", "edgetune-plan.yaml"]),
    (TRAIN, ["--data"]),
    (("plan",), ["--model", "edgetune models"]),
    (("train", "--plan", "nowhere.yaml", "--data", "rows.jsonl"), ["nowhere.yaml"]),
    (("train", "--plan", "rows.jsonl", "--data", "rows.jsonl"), ["rows.jsonl", "cannot be read"]),
    (("train", "--plan", "cut.yaml", "--data", "rows.jsonl"), ["cut.yaml"]),
    (("train", "--resume"), ["--resume --output"]),
    (("train", "--resume", "--output", "nowhere"), ["no run folder nowhere"]),
    (("train", "--resume", "--output", "."), ["not a run folder"]),
    *(
        (("train", "--resume", "--output", "run", *given), ["--resume", given[0]])
        for given in [
            ("--model", "tiny"), ("--rank", "4"), ("--steps", "3"),
            ("--device", "cpu"), ("--plan", "plan.yaml"), ("--dry-run",), ("--no-packing",),
            ("--seed", "0"),
        ]
    ),
    ((*TRAIN, "--data", "rows.jsonl", "--device", "m2-8gb"), ["m2-8gb", "auto"]),
    (("generate", "nowhere", "-p", "a"), ["nowhere"]),
    (("generate", "run", "--raw", "--system", "s", "-p", "a"), ["--raw", "--system"]),
    (("eval", "nowhere", "--data", "rows.jsonl"), ["nowhere"]),
    (("export", "nowhere", "--to", "hf", "--output", "out"), ["nowhere"]),
    (("export", "nowhere", "--to", "peft", "--output", "out", "--data", "rows.jsonl"),
     ["--data is about the check", "--to peft"]),
    (("export", "nowhere", "--to", "peft", "--output", "out", "--no-check"),
     ["--no-check is about the check", "--to peft"]),
    (("export", "nowhere", "--to", "hf", "--output", "out", "--data", "rows.jsonl", "--no-check"),
     ["--data", "--no-check"]),
    (("export", "nowhere", "--to", "hf", "--output", "out", "--adapter"), ["--adapter", "gguf"]),
    (("export", "nowhere", "--to", "hf", "--output", "out", "--quantize", "q8"), ["--quantize"]),
    (("export", "nowhere", "--to", "hf", "--output", "out", "--create"), ["--create", "ollama"]),
    ((*PLAN, "--rank", "0", "--dropout", "1"), ["--rank must be 1 or more; found 0.",
                                               "--dropout must be from 0 to below 1; found 1.0."]),
    ((*PLAN, "--checkpointing", "99"), ["--checkpointing", "99", "4 blocks"]),
    ((*PLAN, "--checkpointing", "2:host", "--device", "cpu"), ["--checkpointing", "host"]),
    ((*PLAN, "--context", "1000000"), ["--context 1000000"]),
    ((*PLAN, "--targets", "nose"), ["nose", "q_proj"]),
    ((*PLAN, "--device", "moon"), ["moon"]),
    ((*PLAN, "--quantization", "mxfp4", "--device", "cpu"), ["mxfp4", "nf4"]),
    ((*PLAN, "--optimizer", "paged-adamw-8bit", "--device", "m2-8gb"), ["--optimizer"]),
    ((*PLAN, "--data", "rows.jsonl", "--long-rows", "split"), ["--long-rows split"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"), COMBINATIONS, ids=[" ".join(found) for found, _ in COMBINATIONS]
)
def test_flags_that_make_no_sense(cli: Cli, arguments: tuple[str, ...], said: list[str]) -> None:
    write_rows(Path("rows.jsonl"))
    Path("cut.yaml").write_text("version: 1\nchoice: {}\n")
    code, message = refused(cli, *arguments)
    assert code == 2
    assert all(text in message for text in said), message


GENERATE = ("generate", "run", "-p", "a")
BOUNDED = [(PLAN, item) for item in knob_specs() if item.interval is not None] + [
    (GENERATE, item) for item in knobs(GenerateOptions)
]


@pytest.mark.parametrize(
    ("command", "item"), BOUNDED, ids=[f"{command[0]} {item.flag}" for command, item in BOUNDED]
)
def test_numbers_that_make_no_sense(cli: Cli, command: tuple[str, ...], item: Any) -> None:
    odd = ["-1"]
    odd += ["nan", "inf", "-inf"] if "float" in str(item.type) else []
    large = "1e39" if "float" in str(item.type) else f"1{'0' * 19}"
    bounded = item.interval.high is not None or item.interval.below is not None
    for number in [*odd, large]:
        code, message = refused(cli, *command, item.flag, number)
        assert code == 2
        most = ", and at most " if number == large and not bounded else "; found "
        assert f"{item.flag} must be {item.interval}{most}" in message


def test_what_does_not_fit_names_what_would(cli: Cli) -> None:
    code, message = refused(cli, *PLAN, "--device", "cpu", "--memory", "1MB")
    assert code == 3
    assert "nearest" in message
    nearest = re.search(r"--memory (\S+)", message)
    assert nearest is not None
    assert cli(*PLAN, "--device", "cpu", "--memory", nearest[1], "-q").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "`edgetune --help` lists what there is"),
        ((*PLAN, "--nope"), "--nope"),
        ((*PLAN, "--rank", "many"), "'many' is not a valid int"),
        ((*PLAN, "--method", "magic"), "docs/methods.md has all"),
        ((*PLAN, "--memory", "lots"), "6GB"),
        ((*PLAN, "--memory", "0"), "from 1 B"),
        ((*PLAN, "--memory", "6"), "A size of 6 without a unit is less than 1 MB"),
        ((*TRAIN, "--memory", "999999"), "Write the unit too, such as 6GB"),
        (("export", "run", "--to", "hf", "--output", "out", "--shard-size", "5"), "--shard-size"),
        ((*PLAN, "--targets", ","), "names nothing"),
        ((*PLAN, "--checkpointing", "lots"), "none, all or a number"),
        ((*PLAN, "--checkpointing", "-1"), "none, all or a number"),
        ((*PLAN, "--checkpointing", "2:moon"), "host or disk"),
        ((*PLAN, "--checkpointing", "none:host"), "keeps no block's input"),
        (("data", "check"), "FILE"),
        (("data", "check", "rows.jsonl", "--rows", "-1"), "--rows"),
        (("eval", "run"), "--data"),
        (("export", "run", "--output", "out"), "--to"),
        (("export", "run", "--to", "zip", "--output", "out"), "'peft', 'hf'"),
        (("models", "-q", "-v"), "contradict"),
    ],
    ids=str,
)
def test_usage(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused_by_click(cli, *arguments)


def test_every_error_has_an_exit_code_of_its_own_kind() -> None:
    assert (TornStateError.exit_code, TornStateError.kind) == (7, "torn-state")
    own = [kind for kind in EdgetuneError.__subclasses__() if kind.__module__ == errors.__name__]
    codes = {kind.__name__: kind.exit_code for kind in own}
    assert codes == {
        "UsageError": 2, "NothingFitsError": 3, "DataError": 4, "ModelError": 5,
        "StoppedError": 6, "OutOfMemoryError": 7, "CheckFailedError": 8, "DivergedError": 8,
        "NoImprovementError": 8, "DiskError": 2, "NetworkError": 5,
    }  # fmt: skip
    kinds = {kind.kind for kind in (EdgetuneError, *own)}
    assert len(kinds) == len(codes) + 1


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((*PLAN, "--nope"), "usage"),
        ((*PLAN, "--memory", "1MB"), "nothing-fits"),
        (("data", "check", "absent.jsonl"), "data"),
        (("plan", "--model", "absent"), "model"),
    ],
)
def test_errors_are_json_too(cli: Cli, arguments: tuple[str, ...], kind: str) -> None:
    called = cli(*arguments, "--json")
    error = json.loads(called.out)["error"]
    assert error["kind"] == kind
    assert error["exit_code"] == called.code > 0
    assert error["message"] in called.err


def test_messages_name_only_commands_that_exist() -> None:
    named = {
        found[0] or found[1]
        for file in [*(ROOT / "edgetune").rglob("*.py"), *(ROOT / "backends").rglob("*.py")]
        for found in re.findall(r"`edgetune ([a-z]+)|edgetune ([a-z]+) --", file.read_text("utf-8"))
    }
    assert named
    assert named <= COMMANDS.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        PLAN,
        (*PLAN, "--data", "rows.jsonl"),
        ("plan", "--model", "llama-7b", "--device", "rtx-4060-laptop"),
        (*TRAIN, "--data", "rows.jsonl", "--dry-run"),
        ("data", "check", "rows.jsonl"),
        ("devices",),
        ("devices", "--all"),
        ("models",),
    ],
    ids=" ".join,
)
def test_json_is_alone_on_stdout(cli: Cli, arguments: tuple[str, ...]) -> None:
    write_rows(Path("rows.jsonl"))
    called = cli(*arguments, "--json")
    assert called.code == 0, called.err
    json.loads(called.out, parse_constant=pytest.fail)
    assert cli(*arguments, "--json", "--quiet").err == ""


@pytest.mark.parametrize("name", ["plan", "models", "devices"])
def test_results_are_on_stdout_and_can_be_all_there_is(cli: Cli, name: str) -> None:
    arguments = PLAN if name == "plan" else (name,)
    assert cli(*arguments, "--quiet").err == ""
    quiet, plain = (re.sub(r"[\d.]+", "", cli(*arguments, *more).out) for more in (("-q",), ()))
    assert quiet == plain != ""  # but for figures: what is free changes while one looks


def test_a_dry_run_prints_the_plan_and_the_receipt_and_trains_nothing(cli: Cli) -> None:
    data = write_rows(Path("rows.jsonl"))
    before = tree()
    called = cli(*TRAIN, "--data", data, "--dry-run", "--quiet")
    assert (called.code, called.err) == (0, "")
    assert "lora" in called.out
    assert "20 = 18 trained + 2 validation + 0 dropped" in called.out
    assert tree() == before


def test_a_brief_dry_run_prints_one_line(cli: Cli) -> None:
    data = write_rows(Path("rows.jsonl"))
    called = cli(*TRAIN, "--data", data, "--dry-run", "--brief", "--quiet")
    assert (called.code, called.out.count("\n")) == (0, 1)
    assert called.out.startswith("Plan: lora of rank")
    called = cli(*TRAIN, "--data", data, "--dry-run", "--brief", "--verbose")
    assert "20 = 18 trained + 2 validation + 0 dropped" in called.out


@pytest.mark.parametrize(
    ("kept", "given"),
    [
        ({"validation_data": "more.jsonl"}, {"validation": 0.2}),
        ({"validation": 0.2}, {"validation_data": "more.jsonl"}),
        ({"method": "adapter", "reduction": 4.0}, {"bottleneck": 8}),
        ({"method": "adapter", "bottleneck": 8}, {"reduction": 4.0}),
    ],
)
def test_a_flag_takes_the_place_of_what_a_plan_has_in_its_stead(
    cli: Cli, kept: dict[str, Any], given: dict[str, Any]
) -> None:
    data = write_rows(Path("rows.jsonl"))
    write_rows(Path("more.jsonl"), [chat("Is it dark?", "It is.")])
    first, then = (
        [f"--{name.replace('_', '-')}={value}" for name, value in some.items()]
        for some in (kept, given)
    )
    plan = (*PLAN, "--data", data, "--output", "edgetune-plan.yaml", "-q")
    assert cli(*plan, *first).code == 0
    called = cli("train", "--dry-run", "--json", "-q", *then)
    assert called.code == 0, called.err
    found = json.loads(called.out)
    values = {**found["training"], **found["choice"]}
    (name, value), *_ = given.items()
    assert str(values[name]).endswith(str(value))
    other, _ = INSTEAD[name]
    assert values[other] in {None, 0.1}
    assert name in found["given"]
    assert other not in found["given"]


def test_a_plan_keeps_what_nothing_reads(cli: Cli) -> None:
    """Plans of older versions have such settings."""
    data = write_rows(Path("rows.jsonl"))
    kept = ("--data", data, "--output", "edgetune-plan.yaml", "-q")
    assert cli(*PLAN, *kept, "--method", "prefix").code == 0
    file = Path("edgetune-plan.yaml")
    plain = yaml.safe_load(file.read_text())
    plain["choice"]["prefix_hidden"], plain["given"] = 4, ["method", "prefix_hidden"]
    plain["training"]["eval_every"] = 5
    plain["training"]["search_methods"] = ["lora", "norm"]
    plain["training"]["patience"] = 0
    file.write_text(yaml.safe_dump(plain))
    called = cli("train", "--dry-run", "--json", "-q", "--validation", "0")
    assert called.code == 0, called.err
    assert json.loads(called.out)["choice"]["prefix_hidden"] == 4


def test_epochs_take_the_place_of_a_plans_steps(cli: Cli) -> None:
    data = write_rows(Path("rows.jsonl"))
    kept = ("--output", "edgetune-plan.yaml")
    assert cli(*PLAN, "--steps", "3", "--data", data, "-q", *kept).code == 0
    called = cli("train", "--data", data, "--epochs", "2", "--dry-run", "--json", "-q")
    training = json.loads(called.out)["training"]
    assert (training["steps"], training["epochs"]) == (None, 2.0)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgetune", "plan", "--model", "lama-7b"]
    quiet, loud = (
        subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, check=False)
        for more in ([], ["--debug"])
    )
    assert quiet.returncode == 5
    assert quiet.stderr.startswith("Error: ")
    assert quiet.stderr.count("\n") == 1
    assert "Traceback" in loud.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_letters_that_a_terminal_lacks_are_escaped(tmp_path: Path, encoding: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "hello \u4e2d"}])
    command = [sys.executable, "-m", "edgetune", "data", "check", "rows.jsonl"]
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, check=False
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, b"")
    shown = b"\\u4e2d" if encoding == "latin-1" else "\u4e2d".encode()
    assert shown in result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    write_rows(tmp_path / os.fsdecode(b"caf\xe9.jsonl"))
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    checked, planned = (
        subprocess.run(
            [sys.executable, "-m", "edgetune", *command, b"caf\xe9.jsonl"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )
        for command in (("data", "check"), (*PLAN, "--data"))
    )  # fmt: skip
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "caf\\udce9.jsonl: 20 rows" in checked.stdout
    assert planned.returncode == 2
    assert "is not UTF-8, so a plan cannot name it" in planned.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes of a shell")
def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    result = subprocess.run(
        f"{sys.executable} -m edgetune models | head -1",
        shell=True, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="descriptors of a shell")
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("models >&-", 0, ""),
        ("generate tiny <&-", 2, "There is no prompt."),
        ("train --nproc \u00b2", 2, "'\u00b2' is not a valid"),
    ],
)
def test_what_is_closed_or_no_number_is_no_bug(
    command: str, code: int, said: str, tmp_path: Path
) -> None:
    result = subprocess.run(
        f"{sys.executable} -m edgetune {command}",
        shell=True, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, said in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr


def test_a_mistyped_run_is_met_with_the_folder_that_was_meant(cli: Cli) -> None:
    Path("runs/home").mkdir(parents=True)
    code, message = refused(cli, "generate", "runs/hoem", "-p", "Hello")
    assert code == 2
    assert "Did you mean runs/home?" in message
    assert "hub" not in message
