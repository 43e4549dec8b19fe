"""Models, tokenizers, templates, adapters, plans and rows whose content is hostile."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.case import LEARN, Arguments, Case, call, chat, json_file, made, model, write

CHECK = ("data", "check", "rows.jsonl")
TRAIN_PLAN = ("train", "--plan", "plan.yaml", "--data", "rows.jsonl", "--output", "new")
TEMPLATE = "chat_template.jinja"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(90) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}"
)
WEIGHTS = "adapter_model.safetensors"


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Return a change of the header of an adapter's weights; the bytes stay."""

    def apply(file: Path) -> None:
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return apply


def _each(field: str, value: object) -> Callable[[dict[str, Any]], object]:
    def change(header: dict[str, Any]) -> None:
        for tensor in header.values():
            tensor[field] = value

    return change


def _steering(header: dict[str, Any]) -> None:
    header["a\x1b[2J\x07" * 3] = header.pop(next(iter(header)))


def _adapter(change: Callable[[Path], object]) -> Callable[[Path], Arguments]:
    """Export a run whose adapter was changed: the first command that reads it."""
    return made(
        lambda here: change(here / "run" / "adapter" / WEIGHTS),
        "generate", "run", "-p", "Hi", "--max-tokens", "2",
    )  # fmt: skip


def _nan(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-4:] = struct.pack("<f", float("nan"))
    file.write_bytes(content)


def _expression(pattern: str) -> Callable[[Any], object]:
    def change(settings: Any) -> None:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                 "invert": False}  # fmt: skip
        both = [split, settings["pre_tokenizer"]]
        settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}

    return change


def _backtracking(here: Path) -> Arguments:
    write("rows.jsonl", chat("a" * 5000 + "!"))(here)
    changed = json_file("tokenizer.json", _expression("(a+)+$"))
    changed(Path(shutil.copytree(_tiny(), here / "model")))
    return (*CHECK, "--model", "./model")


def _tiny() -> Path:
    from hostile.case import TINY

    return TINY


def _bytes_beyond(settings: Any) -> None:
    settings["model"]["vocab"]["zzz"] = 10**6


def _no_numbers(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2:] = b"\x00\x7e"
    file.write_bytes(content)


def _plan(text: str) -> Callable[[Path], Arguments]:
    return made(write("plan.yaml", text), *TRAIN_PLAN)


def _rows(content: str | bytes) -> Callable[[Path], Arguments]:
    return made(write("rows.jsonl", content), *CHECK)


CASES = (
    Case("a safetensors dtype that is a list", 5, _adapter(_header(_each("dtype", ["F32"])))),
    Case("an adapter of integers", 5, _adapter(_header(_each("dtype", "I32")))),
    Case("an adapter with NaN", 5, _adapter(_nan)),
    Case("an adapter with a shape of 10^18", 5,
         _adapter(_header(_each("shape", [10**9, 10**9])))),
    Case("a tensor named to steer the terminal", 5, _adapter(_header(_steering))),
    Case("a header of 2^62 bytes", 5,
         _adapter(lambda file: file.write_bytes(struct.pack("<Q", 1 << 62)))),
    Case("a base with NaN", 5, model(_no_numbers, *LEARN, "--output", "new"), "engine"),
    Case("a tokenizer with tokens beyond the vocabulary", 5,
         model(json_file("tokenizer.json", _bytes_beyond), *CHECK)),
    Case("a regular expression that is none", 5,
         model(json_file("tokenizer.json", _expression("(")), *CHECK)),
    Case("a regular expression that backtracks forever", 5, _backtracking),
    Case("a template that loops forever", 5, model(write(TEMPLATE, ENDLESS), *CHECK)),
    Case("a template that doubles a text 90 times", 5, model(write(TEMPLATE, DOUBLING), *CHECK)),
    Case("a config nested 100,000 deep", 5, model(write("config.json", "[" * 100_000), *CHECK)),
    Case("a config with a number of 5,000 digits", 5,
         model(json_file("config.json", lambda config: config.update(hidden_size=int("9" * 4000))),
               "plan")),
    Case("a plan of aliases", 2, _plan("a: &a [1, 1]\nb: &b [*a, *a]\nchoice: [*b, *b]")),
    Case("a plan nested 100,000 deep", 2, _plan("choice: " + "[" * 100_000)),
    Case("a plan with a number of 5,000 digits", 2, _plan(f"choice: {'9' * 5000}")),
    Case("a plan that makes an object", 2, _plan("choice: !!python/object/apply:os.system [x]")),
    Case("a plan from /dev/zero", 2,
         call("train", "--plan", "/dev/zero", "--data", "rows.jsonl", "--output", "new")),
    Case("rows nested 100,000 deep", 4, _rows('{"messages": ' + "[" * 100_000)),
    Case("a row with a number of 5,000 digits", 4, _rows('{"text": ' + "9" * 5000 + "}\n")),
    Case("rows from /dev/zero", 4, call("data", "check", "/dev/zero")),
    Case("a line of 300 MB", 4, _rows(b"[" * 300_000_000)),
    Case("rows of random bytes", 4, _rows(bytes(range(256)) * 4000)),
)  # fmt: skip
