"""Write the golden files, or with --check say which of them are no longer true.

    python tools/update_golden.py [--check]

A golden plan is what `edgetune plan` prints for a model on a device's profile: device by model by
method, some with a smaller memory. Whoever changes the planner reads the difference. Beside the
plans lies the `--help` of every command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path

from golden_help import golden_help

from edgetune.cli.plan_text import plan_text
from edgetune.device.profiles import profile_device
from edgetune.errors import EdgetuneError
from edgetune.methods import METHODS
from edgetune.model import resolve
from edgetune.planning import make_plan
from edgetune.units import parse_bytes

FOLDER = Path(__file__).parent.parent / "tests" / "golden"

METHOD_CASES = (
    ("rtx-4060-laptop", "llama-3.2-1b", None),
    ("cpu-laptop-8gb", "smollm2-135m", None),
)
"""Cases that are planned for every method; the others for LoRA."""

CASES = (
    *METHOD_CASES,
    ("rtx-4060-laptop", "llama-7b", None),
    ("rtx-4060-laptop", "llama-7b", "3GB"),
    ("rtx-4060-laptop", "llama-7b", "1GB"),
    ("rtx-4060-laptop", "llama-3.1-70b", None),
    ("rtx-4060-laptop", "qwen2.5-0.5b", None),
    ("rtx-4090", "llama-3.1-8b", None),
    ("rtx-4060-laptop", "qwen3-30b-a3b", None),
    ("m2-16gb", "gpt-oss-20b", None),
    ("jetson-orin-nano-8gb", "gemma-2-2b", None),
    ("m2-8gb", "llama-3.2-3b", None),
    ("m4-max-64gb", "qwen3-32b", None),
    ("cpu-laptop-8gb", "tinyllama-1.1b", None),
    ("cpu-laptop-16gb", "smollm2-360m", None),
    ("cpu-laptop-16gb", "mistral-7b", "4GB"),
)


def main(check: bool) -> int:
    """Write or compare every golden file; return 1 if one differs."""
    wanted = {FOLDER / "plans" / name: text for name, text in golden_plans()}
    wanted |= {FOLDER / "help" / name: text for name, text in golden_help()}
    wrong = [file for file in FOLDER.rglob("*.txt") if file not in wanted]
    for file, text in wanted.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        found = file.read_text("utf-8") if file.exists() else ""
        if found != text:
            wrong.append(file)
            before, now = found.splitlines(), text.splitlines()
            print("\n".join(unified_diff(before, now, file.name, "now", lineterm="")))
        if not check:
            file.write_text(text, "utf-8")
    for file in wrong:
        if not check and file not in wanted:
            file.unlink()
    print(f"{len(wrong)} of {len(wanted)} golden files {'differ' if check else 'written'}")
    return 1 if check and wrong else 0


def golden_plans() -> Iterator[tuple[str, str]]:
    """Yield name and text of every golden plan."""
    for case in CASES:
        for method in METHODS if case in METHOD_CASES else ("lora",):
            device, model, memory = case
            limit = f"-{memory}" if memory else ""
            yield f"{device}-{model}{limit}-{method}.txt", _plan(device, model, memory, method)


def _plan(device: str, model: str, memory: str | None, method: str) -> str:
    try:
        plan = make_plan(
            profile_device(device),
            model,
            resolve(model).shape,
            fixed={"method": method},
            training={},
            memory=None if memory is None else parse_bytes(memory),
        )
    except EdgetuneError as error:
        return f"exit {error.exit_code}: {error}\n"
    return plan_text(plan, here=False) + "\n"


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
