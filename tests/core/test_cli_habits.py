"""Other tools' names, configs and plan files: what has the same meaning is taken and said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.shell_completion import get_completion_class
from rows import Called, Cli, write_rows

import edgetune.device.read
from edgetune.cli import COMMANDS, LazyGroup, group
from edgetune.cli.foreign import REFUSED, SAME, SWITCHES, VALUES
from edgetune.device.recorded import recorded_system
from edgetune.device.smi import COMMAND
from edgetune.planning import FILE_NAME, read_plan_file


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Cli(capsys)


def flags_of(command: str) -> dict[str, Any]:
    found = LazyGroup.get_command(group, None, command)  # type: ignore[arg-type]
    return {opt: parameter for parameter in found.params for opt in parameter.opts}  # type: ignore[union-attr]


KEEP = ("--output", FILE_NAME)


def planned(cli: Cli, *arguments: str) -> dict[str, Any]:
    called = cli("plan", "--model", "tiny", "--device", "cpu", "--json", *arguments)
    assert called.code == 0, called.err
    found: dict[str, Any] = json.loads(called.out)
    return found


def test_names_that_are_taken_are_flags_and_refused_ones_are_not() -> None:
    flags = flags_of("train")
    targets = {*SAME.values(), *(ours for ours, _ in SWITCHES.values()), *VALUES}
    foreign = [*SAME, *SWITCHES, *REFUSED]

    assert {f"--{name}" for name in targets} <= flags.keys()
    assert not {f"--{name}" for name in foreign} & flags.keys()
    assert len(foreign) == len(set(foreign))
    for ours, stands_for in SWITCHES.values():
        flags[f"--{ours}"].type.convert(stands_for, None, None)


def test_other_tools_names_plan_the_same(cli: Cli) -> None:
    ours = planned(
        cli, "--steps", "7", "--learning-rate", "1e-3", "--context", "64", "--micro-batch", "2",
        "--accumulation", "3", "--rank", "4", "--alpha", "9", "--quantization", "nf4",
        "--targets", "q_proj,v_proj",
    )  # fmt: skip
    theirs = planned(
        cli, "--max_steps", "7", "--lr=1e-3", "--max-seq-length", "64",
        "--per_device_train_batch_size", "2", "--gradient-accumulation-steps=3", "--lora-r", "4",
        "--lora_alpha", "9", "--load_in_4bit", "--lora-target-modules", "q_proj,v_proj",
    )  # fmt: skip

    assert theirs["choice"] == ours["choice"]
    assert theirs["training"] == ours["training"]


def test_one_line_says_what_they_are_called_here(cli: Cli) -> None:
    called = cli("plan", "--model", "tiny", "--iters", "5", "--batch_size", "2", "--lora_r=4")

    (line,) = [line for line in called.err.splitlines() if line.startswith("Understood")]
    assert line == (
        "Understood: --iters is --steps; --batch_size is --micro-batch (rows at once; "
        "--accumulation of them make a step); --lora_r is --rank."
    )
    assert "Understood" not in cli("plan", "--model", "tiny", "--iters", "5", "-q").err
    assert "Understood" not in cli("plan", "--model", "tiny", "--steps", "5").err


@pytest.mark.parametrize(
    ("given", "quantization"),
    [(["--load-in-4bit"], "nf4"), (["--load_in_4bit", "True"], "nf4"),
     (["--load_in_8bit=true"], "int8"), (["--load-in-4bit", "false"], "none"),
     (["--load_in_4bit=False"], "none")],
)  # fmt: skip
def test_switches_with_and_without_a_value(cli: Cli, given: list[str], quantization: str) -> None:
    found = planned(cli, *given, "--steps", "3")

    assert found["choice"]["quantization"] == quantization
    assert found["training"]["steps"] == 3


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("--load-in-4bit --quantization int8", ("--load-in-4bit", "--quantization", "nf4", "int8")),
        ("--quantization=int8 --qlora true", ("--qlora", "--quantization", "nf4", "int8")),
        ("--load-in-4bit --load-in-8bit", ("--load-in-4bit", "--load-in-8bit")),
        ("--rank 4 --lora-r 8", ("--rank", "--lora-r", "4", "8")),
        ("--lora_r=8 --rank=4", ("--rank", "--lora_r", "4", "8")),
        ("--lora-rank 8 --lora-r 4", ("--lora-rank", "--lora-r")),
        ("--rank 8 --rank 4 --lora-r 8", ("--rank", "--lora-r")),
        ("--rank 8 --lora-r 8 --rank 4", ("--rank", "--lora-r")),
        ("--learning_rate 1e-3 --learning-rate 1e-4", ("--learning_rate", "--learning-rate")),
        ("--optim adamw_8bit --optimizer adamw", ("--optim", "adamw-8bit")),
        ("--use-dora --method lora", ("--use-dora", "dora")),
        ("--use-cpu --device cuda", ("--use-cpu", "cuda")),
    ],
)
def test_two_names_of_a_setting_do_not_contradict(
    cli: Cli, given: str, names: tuple[str, ...]
) -> None:
    for command in ("plan", "train"):
        called = cli(command, "--model", "tiny", *given.split())
        assert called.code == 2
        assert "are one setting" in called.err
        assert all(name in called.err for name in names)


@pytest.mark.parametrize(
    "given",
    [
        "--rank 4 --rank 8", "--rank 8 --lora-r 8", "--rank=4 --lora-r 8 --rank 8 --r 8",
        "--lora-r 4 --lora-r=8",
        "--load-in-4bit false --load-in-8bit false --rank 8",
        "--alpha 9 --lora-alpha 9.0 --rank 8", "--targets q_proj, --target_modules q_proj --r 8",
    ],
)  # fmt: skip
def test_two_names_may_say_the_same_and_one_name_is_said_anew(cli: Cli, given: str) -> None:
    assert planned(cli, *given.split())["choice"]["rank"] == 8


@pytest.mark.parametrize("name", ["fine-tune-type", "finetuning_type", "train-type"])
def test_qlora_is_no_method_under_any_name(cli: Cli, name: str) -> None:
    called = cli("plan", "--model", "tiny", f"--{name}", "qlora")
    assert called.code == 2
    assert "'qlora' is no method" in called.err
    assert "4-bit weights are --quantization" in called.err
    assert planned(cli, f"--{name}", "dora")["choice"]["method"] == "dora"


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_here_is_refused_with_what_to_do(cli: Cli, name: str) -> None:
    for written in (f"--{name}=5", f"--{name.replace('-', '_')}=5"):
        called = cli("train", "--model", "tiny", written)
        assert called.code == 2
        assert REFUSED[name] in called.err


def test_values_have_other_names_too(cli: Cli) -> None:
    found = planned(cli, "--optim", "adamw_bnb_8bit")

    assert found["choice"]["optimizer"] == "adamw-8bit"


def test_own_values_that_look_like_flags_are_left_alone(cli: Cli) -> None:
    assert "No such option '--bogus'" in cli("plan", "--model", "tiny", "--bogus", "3").err
    assert planned(cli, "--no-packing")["training"]["packing"] is False


def test_values_are_never_taken_for_flags(cli: Cli) -> None:
    given = ["--method", "prompt", "--prompt-initial", "text", "--prompt-text", "--lr"]
    assert planned(cli, *given)["choice"]["prompt_text"] == "--lr"


CONFIG = {
    "model": "tiny", "steps": 7, "learning-rate": "1e-3", "micro_batch": 2, "accumulation": 2,
    "rank": 4, "packing": False, "targets": ["q_proj", "v_proj"], "memory": "2GB", "device": "cpu",
}  # fmt: skip


def test_a_config_says_the_same_as_flags(cli: Cli) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(CONFIG))
    called = cli("plan", "--config", "run.yaml", "--json")
    flags = planned(
        cli, "--steps", "7", "--learning-rate", "1e-3", "--micro-batch", "2", "--accumulation",
        "2", "--rank", "4", "--no-packing", "--targets", "q_proj,v_proj", "--memory", "2GB",
    )  # fmt: skip
    found = json.loads(called.out)

    assert (found["choice"], found["training"]) == (flags["choice"], flags["training"])
    assert found["device"]["limit_bytes"] == 2_000_000_000
    assert called.err.count("Understood") == 0


def test_flags_win_over_the_config(cli: Cli) -> None:
    Path("run.yaml").write_text("rank: 4\nsteps: 5\nmodel: nothing-like-it\n")
    found = planned(cli, "--config", "run.yaml", "--rank", "6")

    assert (found["choice"]["rank"], found["training"]["steps"]) == (6, 5)


def test_one_config_serves_plan_and_train(cli: Cli) -> None:
    rows = write_rows(Path("rows.jsonl"))
    text = f"model: tiny\ndata: {rows}\noutput: runs/mine\nstrict: true\nsteps: 2\ndevice: cpu\n"
    Path("run.yaml").write_text(text)

    assert cli("plan", "--config", "run.yaml").code == 0
    assert not Path(FILE_NAME).exists()
    assert not Path("runs").exists()
    called = cli("train", "--config", "run.yaml", "--dry-run")
    assert called.code == 0, called.err
    assert "2 steps" in called.out


def test_other_tools_configs_are_understood_as_their_flags(cli: Cli) -> None:
    Path("run.yaml").write_text("base_model: tiny\nlora_r: 4\nload_in_4bit: false\nlr: 0.001\n")
    called = cli("plan", "--config", "run.yaml", "--device", "cpu", "--json")

    assert called.code == 0, called.err
    assert json.loads(called.out)["choice"]["rank"] == 4
    assert "base_model is --model; lora_r is --rank; lr is --learning-rate." in called.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets:\n- path: x\n  type: alpaca\nadapter: lora\n", "datasets"),
        ("".join(f"strange{n}: 1\n" for n in range(20)), "and 12 more"),
        ("rank: {a: 1}\n", "rank must be one value"),
        ("rank: 4\nlora_r: 8\n", "says --rank twice"),
        ("rank: 4\nrank: 8\n", "a name occurs twice"),
        ("rank: four\n", "'four' is not a valid integer"),
        ("rank: on\n", "rank must be a whole number; found true"),
        ("warmup: true\n", "warmup must be a number; found true"),
        ("warmup_ratio: no\n", "warmup_ratio must be a number; found false"),
        ("patience: yes\n", "patience must be a whole number; found true"),
        ("keep: true\n", "keep must be a whole number; found true"),
        ("max_grad_norm: true\n", "max_grad_norm must be a number; found true"),
        ("prompt_text: yes\n", "prompt_text must be a text; found true"),
        ("data: off\n", "data must be a text; found false"),
        ("method: on\n", "method must be a text; found true"),
        ("memory: true\n", "memory must be a size such as 6GB; found true"),
        ("rank: 4.5\n", "'4.5' is not a valid integer"),
        ("warmup_steps: 10\n", "Warm-up is a share of the steps"),
        ("- rank\n", "is no config"),
        ("rank 4\n", "is no config"),
        ("rank: [4\n", "cannot be read"),
        ("config: other.yaml\n", "config"),
        ("\0", "cannot be read"),
        ("memory: 6\n", "less than 1 MB"),
    ],
)
def test_configs_that_are_refused(cli: Cli, text: str, said: str) -> None:
    Path("run.yaml").write_text(text)
    for command in ("plan", "train"):
        called = cli(command, "--config", "run.yaml", "--model", "tiny")
        assert called.code == 2
        assert said in called.err, called.err
        assert called.err.count("\n") <= 12
    assert not Path(FILE_NAME).exists()


def test_a_config_that_is_not_there(cli: Cli) -> None:
    called = cli("plan", "--config", "nowhere.yaml")
    assert (called.code, called.err) == (2, "Error: There is no config file nowhere.yaml.\n")


def test_a_plan_file_is_a_config(cli: Cli) -> None:
    rows = write_rows(Path("rows.jsonl"))
    first = planned(cli, "--rank", "5", "--data", str(rows), "--output", "mine.yaml")

    called = cli("plan", "--config", "mine.yaml", "--device", "cpu", "--json")
    assert json.loads(called.out)["choice"] == first["choice"]
    called = cli("train", "--config", "mine.yaml", "--device", "cpu", "--dry-run", "--json")
    assert json.loads(called.out)["data"] == first["data"]


def test_train_takes_the_plan_of_the_folder_with_its_rows_and_says_so(cli: Cli) -> None:
    rows = write_rows(Path("rows.jsonl"))
    plan = planned(cli, "--data", str(rows), "--rank", "3", *KEEP)
    called = cli("train", "--device", "cpu", "--dry-run", "--json")

    assert called.code == 0, called.err
    assert json.loads(called.out)["choice"] == plan["choice"]
    assert f"Taking {FILE_NAME}, made " in called.err
    assert f"tiny, rows of {rows.absolute()}" in called.err


def test_a_plan_is_written_where_that_is_asked_for(cli: Cli) -> None:
    called = cli("plan", "--model", "tiny", "--device", "cpu")
    assert called.code == 0
    assert f"--output {FILE_NAME}" in called.err
    assert not list(Path().iterdir())
    assert f"Written to {FILE_NAME}" in cli("plan", "--model", "tiny", *KEEP).err
    assert [file.name for file in Path().iterdir()] == [FILE_NAME]


def test_other_rows_than_the_plans(cli: Cli) -> None:
    rows, others = write_rows(Path("rows.jsonl")), write_rows(Path("others.jsonl"))
    planned(cli, "--data", str(rows), *KEEP)
    called = cli("train", "--data", others, "--device", "cpu", "--dry-run", "--json")

    assert json.loads(called.out)["data"]["path"] == str(others.absolute())


def test_an_older_plan_tells_its_age(cli: Cli) -> None:
    planned(cli, "--data", str(write_rows(Path("rows.jsonl"))), *KEEP)
    old = time.time() - 3 * 24 * 3600
    os.utime(FILE_NAME, (old, old))

    assert "made 3 d ago" in cli("train", "--device", "cpu", "--dry-run").err


def test_a_plan_for_another_machine_is_taken_only_by_name(cli: Cli) -> None:
    rows = write_rows(Path("rows.jsonl"))
    assert cli("plan", "--model", "tiny", "--device", "rtx-4090", "-q", *KEEP).code == 0

    called = cli("train", "--data", rows, "--device", "cpu")
    assert called.code == 2
    assert "is for NVIDIA GeForce RTX 4090 (cuda), and this is" in called.err
    assert f"--plan {FILE_NAME}" in called.err
    called = cli("train", "--data", rows, "--device", "cpu", "--plan", FILE_NAME, "--dry-run")
    assert called.code == 0, called.err
    assert "it was for NVIDIA GeForce RTX 4090, and is planned anew" in called.err


def test_the_device_of_the_plan_is_taken_where_it_is_here(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = "0, GPU-1, NVIDIA A, 8188, 7000, 4, 8\n1, GPU-2, NVIDIA B, 24576, 24000, 4, 16\n"
    system = recorded_system(
        {"total_bytes": 2**34, "available_bytes": 2**33, "commands": {" ".join(COMMAND): cards}}
    )
    monkeypatch.setattr(edgetune.device.read, "this_system", lambda: system)
    rows = write_rows(Path("rows.jsonl"))
    for device, name in (
        ("cpu", "x86_64 processor"),
        ("cuda:0", "NVIDIA A"),
        ("cuda:1", "NVIDIA B"),
    ):
        assert cli("plan", "--model", "tiny", "--device", device, "-q", *KEEP).code == 0
        called = cli("train", "--data", rows, "--dry-run", "--json")
        assert called.code == 0, called.err
        assert json.loads(called.out)["device"]["name"] == name


def test_a_plan_of_something_else_is_kept_when_another_is_written(cli: Cli) -> None:
    cli("plan", "--model", "llama-7b", "--device", "rtx-4090", "-q", *KEEP)
    kept = Path(FILE_NAME).read_text()

    called = cli("plan", "--model", "tiny", *KEEP)
    assert "The plan that was there is for something else; it is edgetune-plan-1.yaml" in called.err
    assert Path("edgetune-plan-1.yaml").read_text() == kept
    assert read_plan_file(Path(FILE_NAME))["model"]["ref"] == "tiny"
    cli("plan", "--model", "tiny", "--rank", "3", *KEEP)
    cli("plan", "--model", "tiny", "--data", write_rows(Path("rows.jsonl")), *KEEP)
    assert not Path("edgetune-plan-2.yaml").exists()
    cli("plan", "--model", "llama-7b", "-q", *KEEP)
    assert Path("edgetune-plan-2.yaml").is_file()


WRONG = {
    "plan": ["--model", "nothing-like-it"],
    "train": ["--model", "nothing-like-it", "--data", "x"],
    "eval": ["nowhere", "--data", "x"],
    "generate": ["nowhere", "-p", "x"],
    "chat": ["nowhere"],
    "serve": ["nowhere"],
    "export": ["nowhere", "--to", "hf", "--output", "x"],
    "data": ["check", "nowhere"],
    "devices": ["--device", "cpu"],
    "fetch": ["nothing-like-it"],
    "doctor": ["--device", "nothing-like-it"],
    "models": ["nothing-like-it"],
    "view": None,
    "report": ["nowhere"],
    "compare": ["nowhere", "nowhere"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_with_json_errors_are_json(cli: Cli, command: str) -> None:
    told = []
    for wrong in (WRONG.get(command, ["nowhere"]), ["--bogus"], ["extra", "extra", "extra"]):
        if wrong is None:
            continue
        called: Called = cli(command, *wrong, "--json")
        told.append(json.loads(called.out)["error"])
        assert told[-1]["exit_code"] == called.code != 0
        assert told[-1]["message"]
        assert "Traceback" not in called.err
    assert told


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_told_how_to_complete_and_what(shell: str, tmp_path: Path) -> None:
    assert "_EDGETUNE_COMPLETE" in _complete(tmp_path, f"{shell}_source")
    asked = {"COMP_WORDS": "edgetune tr", "COMP_CWORD": "1"}
    if shell == "fish":
        asked = {"COMP_WORDS": "edgetune", "COMP_CWORD": "tr"}
    offered = _complete(tmp_path, f"{shell}_complete", **asked)
    assert "train" in offered.replace(",", " ").split()


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (["train"], "--lear", "--learning-rate"),
        (["plan", "--model"], "qwen2.5-0", "qwen2.5-0.5b-instruct"),
        (["plan", "--method"], "lo", "lora"),
        (["data"], "ch", "check"),
    ],
)
def test_flags_values_and_models_are_completed(
    words: list[str], incomplete: str, expected: str
) -> None:
    shell = get_completion_class("bash")
    assert shell is not None
    completing = shell(group, {}, "edgetune", "_EDGETUNE_COMPLETE")
    assert expected in [x.value for x in completing.get_completions(words, incomplete)]


def _complete(folder: Path, instruction: str, **asked: str) -> str:
    environment = {**os.environ, "_EDGETUNE_COMPLETE": instruction, **asked}
    code = "import sys; sys.argv = ['edgetune']; from edgetune.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout
