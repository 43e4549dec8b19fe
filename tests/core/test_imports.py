"""What the core may not do: import an array framework, or print."""

from __future__ import annotations

import ast
import compileall
import subprocess
import sys
from pathlib import Path

import pytest
from yardstick import slowness

from edgetune.data import load_tokenizer
from edgetune.model import resolve

ROOT = Path(__file__).parents[2]
CORE = ROOT / "edgetune"
FRAMEWORKS = ("torch", "mlx", "mlx_lm", "bitsandbytes", "tensorflow", "jax")
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in CORE.rglob("*.py")
    if file.name != "__main__.py"
)


def loaded_after(code: str, folder: Path) -> set[str]:
    """Return the top-level modules that are loaded after some code ran."""
    code = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split())


def test_no_module_of_the_core_imports_a_framework(tmp_path: Path) -> None:
    assert len(MODULES) > 80
    loaded = loaded_after("".join(f"import {name}\n" for name in MODULES), tmp_path)
    assert "edgetune" in loaded
    assert loaded.isdisjoint(FRAMEWORKS)


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["models"],
        ["plan", "--model", "llama-7b", "--device", "rtx-4090"],
        ["plan", "--model", "tiny"],
        ["train", "--help"],
    ],
    ids=" ".join,
)
def test_commands_that_must_be_instant_load_no_framework(
    command: list[str], tmp_path: Path
) -> None:
    loaded = loaded_after(f"from edgetune.cli import run\nassert run({command}) == 0", tmp_path)
    assert loaded.isdisjoint((*FRAMEWORKS, "transformers", "tokenizers"))


def test_a_plain_tokenizer_is_read_without_torch(tmp_path: Path) -> None:
    data = ROOT / "examples" / "home_commands.jsonl"
    command = ["data", "check", str(data), "--model", "tiny"]
    loaded = loaded_after(f"from edgetune.cli import run\nassert run({command}) == 0", tmp_path)
    assert "tokenizers" in loaded
    assert loaded.isdisjoint(FRAMEWORKS)


def test_a_plain_tokenizer_is_the_one_that_transformers_chooses() -> None:
    from transformers import AutoTokenizer

    folder = resolve("tiny").folder
    assert folder is not None
    found, chosen = load_tokenizer(folder), AutoTokenizer.from_pretrained(str(folder))
    inner = chosen.backend_tokenizer
    inner.no_truncation()
    inner.no_padding()
    assert found.definition == inner.to_str()
    assert found.chat_template == chosen.chat_template
    assert (found.bos_id, found.eos_id, found.pad_id) == (
        chosen.bos_token_id, chosen.eos_token_id, chosen.pad_token_id,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="counts with getrusage")
def test_a_plan_takes_less_than_half_a_second_of_the_processor(tmp_path: Path) -> None:
    code = "from edgetune.cli import run\nrun(['plan', '--model', 'llama-7b', '--quiet'])"
    compileall.compile_dir(CORE, quiet=1)  # as an installation has it
    assert min(_cpu_seconds(code, tmp_path) / slowness() for _ in range(3)) < 0.5


def _cpu_seconds(code: str, folder: Path) -> float:
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


NETWORK = {"socket", "urllib.request", "http.client", "requests", "httpx", "huggingface_hub"}
MAY_CONNECT = {
    "edgetune/hub/client.py",  # fetch, alone
    "edgetune/hub/failures.py",  # the names of its errors
    "edgetune/serving/listening.py",  # listens, on the loopback interface
    "edgetune/workflows/launching.py",  # looks for free ports of this machine, for its ranks
    "edgetune/exporters/gguf/client_process.py",  # asks llama.cpp on this machine
}


def test_only_fetch_goes_to_the_network() -> None:
    importing = {
        file.relative_to(ROOT).as_posix()
        for folder in ("edgetune", "backends", "profiles")
        for file in (ROOT / folder).rglob("*.py")
        for name in _imported(ast.parse(file.read_text("utf-8")))
        if name in NETWORK or name.partition(".")[0] in NETWORK
    }
    assert importing == MAY_CONNECT
    fetching = {
        file.relative_to(ROOT).as_posix()
        for file in CORE.rglob("*.py")
        for name in _imported(ast.parse(file.read_text("utf-8")))
        if name.startswith("edgetune.hub") and "edgetune/hub/" not in file.as_posix()
    }
    assert fetching == {"edgetune/workflows/fetching.py", "edgetune/cli/fetch.py"}


def _imported(tree: ast.AST) -> set[str]:
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return names | {node.module or "" for node in froms}


@pytest.mark.parametrize("folder", ["edgetune", "backends", "profiles"])
def test_only_the_command_line_prints(folder: str) -> None:
    printing = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in (ROOT / folder).rglob("*.py")
        if CORE / "cli" not in file.parents
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Name) and node.id == "print"
    ]
    assert printing == []


def test_importing_changes_no_environment_and_no_settings(tmp_path: Path) -> None:
    code = "\n".join(
        [
            "import logging, os, signal",
            "def state(): return (dict(os.environ), os.getcwd(), logging.root.handlers[:],",
            "    logging.root.level, signal.getsignal(signal.SIGINT))",
            "before = state()",
            *(f"import {name}" for name in MODULES),
            "assert state() == before, (before, state())",
        ]
    )
    loaded_after(code, tmp_path)
