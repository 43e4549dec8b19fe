"""The main job with the network cut off works unchanged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from gguf_models import convert
from gguf_tokenizers import byte_level, published
from models import make_model
from rows import Called, write_rows

TRAIN = ["train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--output", "run",
         "--steps", "2"]  # fmt: skip
JOB = [
    TRAIN,
    ["eval", "run", "--data", "rows.jsonl"],
    ["generate", "run", "-p", "Shut the garage door.", "--max-tokens", "8"],
    ["export", "run", "--to", "hf", "--output", "merged"],
    ["export", "run", "--to", "peft", "--output", "adapter"],
]
CODE = f"""
from edgetune.cli import run
for command in {JOB}:
    code = run([*command, "--json", "--quiet"])
    assert code == 0, (command, code)
"""
OFFLINE = """
import socket
def refuse(*arguments, **settings):
    raise AssertionError(f"the network was asked for: {arguments}")
for name in ("connect", "connect_ex", "sendto", "sendmsg"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
"""
NAMESPACES = (["unshare", "-rn"], ["unshare", "-n"])
REACH = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=5)"


def do(command: list[str], folder: Path) -> Called:
    """Run a program in a folder, where nothing says that there is no network."""
    hidden = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return Called(result.returncode, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the job comes to with the network as it is."""
    return came_to(tmp_path_factory.mktemp("online"), [sys.executable, "-c", CODE])


def came_to(folder: Path, command: list[str]) -> dict[str, object]:
    """Return what the whole job prints and writes, but for places, times and memory."""
    write_rows(folder / "rows.jsonl")
    called = do(command, folder)
    assert (called.code, called.err) == (0, ""), called.err
    decoder, text, printed = json.JSONDecoder(), called.out, []
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        printed.append(value)
        text = text[end:]
    assert len(printed) == len(JOB)
    for measured in ("peak_bytes", "pilot"):
        printed[0].pop(measured)
    printed[0]["verdict"].pop("seconds")
    files = [folder / "run" / "adapter", folder / "merged", folder / "adapter"]
    return {
        "printed": printed,
        **{
            str(file.relative_to(folder)): file.read_bytes()
            for part in files
            for file in sorted(part.iterdir())
        },
    }


def namespace() -> list[str]:
    """Return the command that takes the network away, if one is permitted here."""
    for command in NAMESPACES:
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            continue
    pytest.skip("no network namespace can be made here: unshare is missing or not permitted")


def test_without_a_network_namespace_nothing_changes(
    expected: dict[str, object], tmp_path: Path
) -> None:
    cut = namespace()
    unreachable = do([*cut, sys.executable, "-c", REACH], tmp_path)
    assert "Network is unreachable" in unreachable.err
    assert came_to(tmp_path, [*cut, sys.executable, "-c", CODE]) == expected


def test_no_socket_is_ever_connected(expected: dict[str, object], tmp_path: Path) -> None:
    caught = do([sys.executable, "-c", OFFLINE + REACH], tmp_path)
    assert "the network was asked for" in caught.err
    assert came_to(tmp_path, [sys.executable, "-c", OFFLINE + CODE]) == expected


def test_a_gguf_file_needs_no_network_either(tmp_path: Path) -> None:
    file = convert(
        make_model(
            tmp_path / "base",
            "llama",
            vocab_size=700,
            hidden_size=64,
            head_dim=16,
            intermediate_size=96,
        ),
        tmp_path / "model.gguf",
        {"token_embd": "Q8_0", "": "Q4_0"},
        byte_level(published("llama-bpe"), "llama-bpe"),
    )
    write_rows(tmp_path / "rows.jsonl")
    names = {"tiny": str(file), "merged": str(tmp_path / "merged")}
    job = [[names.get(word, word) for word in command] for command in JOB]
    job.append(
        ["export", "run", "--to", "gguf", "--output", str(tmp_path / "exported.gguf"), "--no-check"]
    )

    called = do([sys.executable, "-c", OFFLINE + CODE.replace(str(JOB), str(job))], tmp_path)

    assert called.code == 0, called.err
    assert (tmp_path / "exported.gguf").is_file()


WATCH = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg,bind", "-o"]
ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
USE = """
import io, sys
from edgetune.cli import run
export = ["export", "run", "--quiet", "--to"]
for command in (
    [*export, "gguf", "--output", "home.gguf", "--data", "rows.jsonl"],
    [*export, "ollama", "--output", "ollama", "--no-check"],
    [*export, "lmstudio", "--output", "lmstudio", "--no-check"],
):
    assert run(command) == 0, command
for name in ("run", "home.gguf"):
    sys.stdin = io.StringIO("Hello\\nAnd then?\\n")
    assert run(["chat", name, "--max-tokens", "4"]) == 0, name
"""


def watched(file: Path) -> list[str]:
    """Return the command that writes what the programs behind it ask of sockets into a file."""
    try:
        code = subprocess.run([*WATCH, file, "true"], capture_output=True, check=False).returncode
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if code:
        pytest.skip("no process can be traced here")
    return [*WATCH, str(file)]


def reached(file: Path) -> set[str]:
    """Return the addresses that were bound, connected to or sent to."""
    return {v4 or v6 for v4, v6 in ADDRESS.findall(file.read_text())}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("finished")
    write_rows(folder / "rows.jsonl")
    assert do([sys.executable, "-m", "edgetune", *TRAIN, "-q"], folder).code == 0
    return folder


def test_exports_and_chats_reach_nothing_but_this_machine(finished: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert do([*watched(log), sys.executable, "-c", REACH], tmp_path).code != 0
    assert reached(log) == {"192.0.2.1"}

    called = do([*watched(log), sys.executable, "-c", USE], finished)

    assert called.code == 0, called.err
    assert reached(log) <= {"127.0.0.1"}  # llama.cpp's own server, for the check


def test_a_server_is_on_loopback_alone(finished: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    serve = [sys.executable, "-m", "edgetune", "serve", "run", "--port", "0", "--json"]
    server = subprocess.Popen(
        [*watched(log), *serve], cwd=finished, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())["url"]
    body = {"model": "run", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)) as answer:
        assert json.load(answer)["choices"]
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    server.wait(60)
    server.stdout.close()

    assert reached(log) == {"127.0.0.1"}
