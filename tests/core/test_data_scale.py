"""Large files: read in blocks, by several processes, once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from data_support import SHAPES, chat, write_model, write_rows

from edgetune.data import (
    Dataset,
    ReadProgress,
    Tokenizer,
    cache,
    load_tokenizer,
    read,
    read_dataset,
)
from edgetune.errors import DataError, DiskError

ROWS = 700  # several blocks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("chatml"), SHAPES["chatml"])


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[object] = [chat(f"hello {n}", "fine " * (1 + n % 9)) for n in range(ROWS)]
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", rows)


@pytest.fixture(autouse=True)
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, which takes files of any size here."""
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(read, "CACHED_FROM", 0)
    return tmp_path / "cache" / "tokens"


def content(dataset: Dataset) -> list[object]:
    """All that is trained, and what is said of it."""
    rows = [(tokens.tolist(), mask.tolist()) for tokens, mask in dataset.train]
    locations = [dataset.train.place(i) for i in range(len(dataset.train))]
    return [rows, locations, dataset.receipt.to_json(), dataset.fingerprint]


def test_processes_memory_and_disk_give_the_same(tokenizer, file, monkeypatch, entries):
    several = content(read_dataset(file, tokenizer, processes=2))
    (entry,) = entries.iterdir()
    shutil.rmtree(entry)
    assert content(read_dataset(file, tokenizer, processes=1)) == several
    monkeypatch.setattr(read, "CACHED_FROM", 1 << 40)
    assert content(read_dataset(file, tokenizer)) == several


def test_tokens_are_on_disk(tokenizer, file):
    dataset = read_dataset(file, tokenizer).fit(500)
    for array in (dataset.train.tokens, dataset.train.mask, dataset.validation.tokens):
        assert isinstance(array, np.memmap)


def test_a_file_is_tokenized_once(tokenizer, file, tmp_path, entries, monkeypatch):
    first = content(read_dataset(file, tokenizer))
    elsewhere = tmp_path / "elsewhere" / "rows.jsonl"
    elsewhere.parent.mkdir()
    shutil.copy(file, elsewhere)
    monkeypatch.setattr(read, "_Pass", None)
    assert content(read_dataset(elsewhere, tokenizer)) == first
    assert read_dataset(file, tokenizer, seed=1, validation=0.5).receipt.rows_read == ROWS
    assert len(list(entries.iterdir())) == 1


def test_what_decides_the_tokens_decides_the_entry(tokenizer, file, tmp_path, entries):
    other = load_tokenizer(write_model(tmp_path / "llama3", SHAPES["llama3"]))
    read_dataset(file, tokenizer)
    read_dataset(file, tokenizer, loss_on="all")
    read_dataset(file, other)
    read_dataset(file, tokenizer, fields={"messages": "messages"})
    with (tmp_path / "more.jsonl").open("w") as stream:
        stream.write(file.read_text() + json.dumps(chat("a", "b")))
    read_dataset(tmp_path / "more.jsonl", tokenizer)
    assert len(list(entries.iterdir())) == 5


@pytest.mark.parametrize(("name", "rows"), [("rows.txt", 1), ("rows.jsonl", 2)])
def test_the_kind_of_a_file_decides_the_entry(name, rows, tokenizer, tmp_path):
    for each in ("rows.txt", "rows.jsonl"):
        (tmp_path / each).write_text('{"text": "hello"}\n{"text": "you"}\n')
    read_dataset(tmp_path / "rows.txt", tokenizer)
    read_dataset(tmp_path / "rows.jsonl", tokenizer)
    assert read_dataset(tmp_path / name, tokenizer).receipt.rows_read == rows


@pytest.mark.parametrize("name", ["tokens", "reading.json", "lengths"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_damaged_entry_is_made_again(name, how, tokenizer, file, entries):
    expected = content(read_dataset(file, tokenizer))
    (damaged,) = (entry / name for entry in entries.iterdir())
    if how == "gone":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:-1])
    assert content(read_dataset(file, tokenizer)) == expected
    assert content(read_dataset(file, tokenizer)) == expected


@pytest.mark.parametrize("name", ["tokens", "mask", "lengths", "digests", "loss_tokens"])
def test_other_rows_are_never_read(name, tokenizer, file, entries):
    expected = content(read_dataset(file, tokenizer))
    (entry,) = entries.iterdir()
    changed = bytearray((entry / name).read_bytes())
    changed[0] ^= 1
    (entry / name).write_bytes(changed)
    assert content(read_dataset(file, tokenizer)) == expected


def test_an_entry_under_another_name_is_not_taken(tokenizer, file, entries):
    expected = content(read_dataset(file, tokenizer))
    (first,) = entries.iterdir()
    read_dataset(file, tokenizer, loss_on="all")
    (other,) = set(entries.iterdir()) - {first}
    shutil.rmtree(first)
    shutil.move(other, first)
    assert content(read_dataset(file, tokenizer)) == expected


READER = """
import sys
from pathlib import Path
from edgetune.data import load_tokenizer, read, read_dataset
read.CACHED_FROM = 0
tokenizer = load_tokenizer(Path(sys.argv[1]))
for _ in range(int(sys.argv[3])):
    dataset = read_dataset(Path(sys.argv[2]), tokenizer, processes=1)
    tokens = sum(int(tokens.sum()) for tokens, _ in dataset.train)
    print(dataset.fingerprint, tokens)
"""


def reader(model: Path, file: Path, times: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READER, model, file, str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_entries_may_be_deleted_while_four_processes_read(model, file, entries):
    processes = [reader(model, file, 3) for _ in range(4)]
    deleted = 0
    while any(process.poll() is None for process in processes):
        if entries.exists():
            shutil.rmtree(entries, ignore_errors=True)
            deleted += 1
        time.sleep(0.003)
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, told
    assert len({line for out, _ in told for line in out.splitlines()}) == 1
    assert deleted > 3


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no process groups")
def test_processes_end_with_the_one_that_started_them(model, tokenizer, tmp_path, entries):
    rows: list[object] = [chat(f"hello {n}", "fine " * 40) for n in range(20_000)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    script = READER.replace("processes=1", "processes=3")
    command = [sys.executable, "-c", script, model, file, "1"]
    parent = psutil.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(entries.glob(".*.partial/tokens")) or len(parent.children()) < 4:
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = parent.children(recursive=True)
    os.killpg(parent.pid, signal.SIGHUP)  # which the workers leave to the one that started them
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    left = list(entries.iterdir())
    assert left
    for path in left:
        os.utime(path, (0, 0))
    read_dataset(write_rows(tmp_path / "few.jsonl", rows[:3]), tokenizer)
    assert not [path for path in entries.iterdir() if path.name.endswith(".partial")]


def test_an_old_entry_is_removed_and_a_used_one_is_not(tokenizer, file, entries):
    read_dataset(file, tokenizer)
    (used,) = entries.iterdir()
    for folder in (used, entries / "old"):
        folder.mkdir(exist_ok=True)
        os.utime(folder, (0, 0))
    read_dataset(file, tokenizer)
    read_dataset(file, tokenizer, loss_on="all")
    assert used.exists()
    assert not (entries / "old").exists()


def test_nothing_is_left_of_a_refused_file(tokenizer, tmp_path, entries):
    rows = [chat("a", "b"), {"messages": []}]
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        read_dataset(write_rows(tmp_path / "rows.jsonl", rows), tokenizer)
    assert not list(entries.iterdir())


def test_a_place_that_cannot_be_written_is_explained(tokenizer, file, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "taken"))
    with pytest.raises(DiskError, match="set EDGETUNE_CACHE to a folder"):
        read_dataset(file, tokenizer)


def test_the_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGETUNE_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache.cache_folder() == tmp_path / ".cache" / "edgetune" / "tokens"


def test_problems_come_in_order_from_any_process(tokenizer, tmp_path):
    lines = [json.dumps(chat("hello", "fine " * (1 + n % 50))).encode() for n in range(1200)]
    for number in (3, 300, 301, 700, 1100):
        lines[number - 1] = b"\xff" if number % 2 else b"{"
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    told = set()
    for processes in (1, 2):
        with pytest.raises(DataError) as caught:
            read_dataset(tmp_path / "rows.jsonl", tokenizer, processes=processes)
        told.add(str(caught.value))
    (message,) = told
    numbers = [line.split(":")[1] for line in message.splitlines()[1:]]
    assert numbers == ["3", "300", "301", "700", "1100"]


def test_a_hopeless_file_is_not_read_to_its_end(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_MOST_PROBLEMS", 1000)
    (tmp_path / "rows.jsonl").write_text("{\n" * 50_000)
    with pytest.raises(DataError, match=r"Problems in the data: 1\d\d\d\n"):
        read_dataset(tmp_path / "rows.jsonl", tokenizer)


def test_progress_rises_to_the_end(tokenizer, file):
    told: list[ReadProgress] = []
    read_dataset(file, tokenizer, report=told.append)
    size = file.stat().st_size
    assert [step.done for step in told] == sorted(step.done for step in told)
    assert [step.rows for step in told] == sorted(step.rows for step in told)
    assert (told[-1].done, told[-1].rows) == (size, ROWS)
    assert {step.total for step in told} == {size}
