"""Does reading a large file cost more than its tokenizer, in time or in memory?

    python tools/bench/data.py --size 100MB [--model REF] [--processes N]

A file of chats is generated from a seed and read by contenders, each in its own process:
``bare`` is the tokenizer alone, with its threads, on texts that are rendered already, and
``bare-fast`` the same without the places of tokens in the text; ``threads`` and ``processes`` are
edgetune, reading the file into the cache. One JSON line each: seconds, CPU seconds of all
threads and processes (the fairer figure on a busy machine), the peak of the memory of all
processes together (proportional set size, sampled), and how much of it is more than the main
process had with the libraries and the tokenizer loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from threading import Event, Thread

import psutil
import tokenizers

from edgetune.data import Tokenizer, load_tokenizer, read_dataset
from edgetune.data.workers import usable_cores
from edgetune.model import resolve
from edgetune.units import parse_bytes

Seconds = tuple[float, float]  # by the clock, and of all cores
CONTENDERS = ("bare", "bare-fast", "threads", "processes")


def main() -> None:
    """Generate the file, run the contenders, print their figures."""
    arguments = _arguments()
    if arguments.contender:
        _contend(arguments.contender, arguments.file, arguments.model, arguments.processes)
        return
    with tempfile.TemporaryDirectory(prefix="edgetune-bench-") as folder:
        file = Path(folder) / "chats.jsonl"
        rows = generate(file, parse_bytes(arguments.size), arguments.seed)
        facts = {"bytes": file.stat().st_size, "rows": rows, "cores": usable_cores(),
                 "model": arguments.model, "tokenizers": version("tokenizers")}  # fmt: skip
        for _ in range(arguments.repeat):
            taking_part = ["bare", *(name for name in arguments.against if name != "bare")]
            results = {name: _measured(name, file, arguments) for name in taking_part}
            for name, result in results.items():
                ratios = {
                    f"{kind}_times_bare": round(result[kind] / results["bare"][kind], 3)
                    for kind in ("seconds", "cpu_seconds")
                }
                print(json.dumps({"contender": name, **facts, **result, **ratios}), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="100MB")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--processes", type=int, default=usable_cores())
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def generate(file: Path, size: int, seed: int) -> int:
    """Write chats of one to four exchanges until the file has ``size`` bytes; return the rows."""
    sentences = list(islice(_sentences(random.Random(seed)), 5000))
    draw, rows = random.Random(seed + 1), 0
    with file.open("w", encoding="utf-8") as stream:
        while stream.tell() < size:
            turns = [
                {"role": role, "content": " ".join(draw.choices(sentences, k=most))}
                for _ in range(draw.choice((1, 1, 2, 4)))
                for role, most in (("user", draw.randint(1, 3)), ("assistant", draw.randint(2, 8)))
            ]
            stream.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
            rows += 1
    return rows


def _sentences(draw: random.Random) -> Iterator[str]:
    """Yield sentences whose words are as unevenly frequent as those of a language."""
    syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "é")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    while True:
        chosen = draw.choices(words, weights, k=draw.randint(4, 16))
        yield " ".join(chosen).capitalize() + draw.choice(".?!")


def _measured(name: str, file: Path, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--contender", name, "--file", str(file),
               "--model", arguments.model, "--processes", str(arguments.processes)]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edgetune-bench-cache-") as cache:
        environment = {**os.environ, "EDGETUNE_CACHE": cache}
        output = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


def _contend(name: str, file: Path, model: str, processes: int) -> None:
    folder = resolve(model).folder
    assert folder is not None
    tokenizer = load_tokenizer(folder)
    tokenizer.encode("a")
    _render_lines(tokenizer, [json.dumps({"messages": [{"role": "user", "content": "a"}]})])
    libraries = _memory_of_all()
    run = {
        "bare": lambda: _bare(tokenizer, folder, file, "encode_batch"),
        "bare-fast": lambda: _bare(tokenizer, folder, file, "encode_batch_fast"),
        "threads": lambda: _edgetune(tokenizer, file, 1),
        "processes": lambda: _edgetune(tokenizer, file, processes),
    }[name]
    (seconds, cpu_seconds), peak = _watched(run)
    print(json.dumps({
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_bytes": peak,
        "peak_over_libraries_bytes": peak - libraries,
    }))  # fmt: skip


def _bare(tokenizer: Tokenizer, folder: Path, file: Path, method: str) -> Seconds:
    """Return the time of the tokenizer alone, rendering not counted."""
    encode = getattr(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), method)
    seconds = cpu_seconds = 0.0
    with file.open(encoding="utf-8") as stream:
        while lines := list(islice(stream, 1000)):
            texts = _render_lines(tokenizer, lines)
            start, cpu_start = time.perf_counter(), _cpu_seconds()
            encode(texts, add_special_tokens=False)
            seconds += time.perf_counter() - start
            cpu_seconds += _cpu_seconds() - cpu_start
    return seconds, cpu_seconds


def _render_lines(tokenizer: Tokenizer, lines: list[str]) -> list[str]:
    return [tokenizer.render(json.loads(line)["messages"]) for line in lines]


def _edgetune(tokenizer: Tokenizer, file: Path, processes: int) -> Seconds:
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    read_dataset(file, tokenizer, processes=processes)
    return time.perf_counter() - start, _cpu_seconds() - cpu_start


def _cpu_seconds() -> float:
    """Return the time on any core of this process and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _watched(run: Callable[[], Seconds]) -> tuple[Seconds, int]:
    """Return what ``run`` does, and the most memory that it and its processes had together."""
    done, peaks = Event(), [0]

    def watch() -> None:
        while not done.wait(0.1):
            peaks.append(_memory_of_all())

    watcher = Thread(target=watch)
    watcher.start()
    try:
        return run(), max(peaks)
    finally:
        done.set()
        watcher.join()


def _memory_of_all() -> int:
    """Return the bytes of this process and its children, shared pages counted once."""
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    main()
