"""The same work for every contender: rows, adapter, hyper-parameters, and how it is measured."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RANK = 16
ALPHA = 32
SEED = 0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

PACKAGES = ("edgetune", "torch", "transformers", "peft", "bitsandbytes", "trl", "unsloth")

WORDS = 200
"""Different tokens in the rows: few, so that the loss falls within some steps."""

INTERVAL = 0.005
"""Seconds between two looks at the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A model and how much to train of it; ``tokens`` is the length of a row."""

    model: str
    tokens: int
    steps: int
    vocabulary: int
    dtype: str = "bfloat16"
    learning_rate: float = 1e-4
    device: str = "cpu"
    cap: int = 0
    """Bytes of a card's memory that may be used; 0 for all. Includes no CUDA context."""

    def rows(self) -> NDArray[np.int32]:
        """Return one row a step, (steps, tokens)."""
        draw = np.random.default_rng(SEED)
        words = draw.integers(3, self.vocabulary, WORDS)
        return words[draw.integers(0, WORDS, (self.steps, self.tokens))].astype(np.int32)


@dataclass(slots=True)
class Result:
    """What a contender reports: seconds and loss of each step, bytes at the peak."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    load_seconds: float = 0.0
    start_anonymous: int = 0
    load_anonymous: int = 0
    peak_anonymous: int = 0
    peak_resident: int = 0
    peak_card: int = 0
    """Bytes that torch's allocator took from the card at most."""
    versions: dict[str, str] = field(default_factory=dict)

    def print(self) -> None:
        """Print this, with the versions of what took part, as the last line of output."""
        self.versions = versions()
        print(json.dumps(asdict(self)), flush=True)


def versions() -> dict[str, str]:
    """Return the versions of what is installed for this process."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextmanager
def measured(result: Result) -> Iterator[None]:
    """Watch this process's anonymous memory, and read its peak of resident memory at the end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(INTERVAL):
            result.peak_anonymous = max(result.peak_anonymous, status("RssAnon:"))

    result.start_anonymous = status("RssAnon:")
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        result.peak_resident = status("VmHWM:")
        result.peak_card = _card_peak()


@contextmanager
def loading(result: Result) -> Iterator[None]:
    """Time the loading of the model and note its peak."""
    begun = time.perf_counter()
    yield
    result.load_seconds = time.perf_counter() - begun
    result.load_anonymous = result.peak_anonymous


def capped(work: Work) -> None:
    """Let torch take no more of a card than the work allows."""
    if work.cap:
        import torch

        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, work.cap / total))


def _card_peak() -> int:
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def status(name: str) -> int:
    """Return a field of this process's memory in bytes."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0
