"""Freed memory serves the next tensors, and goes back when the process is near its plan."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgetune_torch.malloc import HOLES, RESERVE, Heap

MB = 2**20
PLAN = 500 * MB
NEAR = PLAN - RESERVE


class Process:
    """A process whose memory, and how much of its heap is free, are set by hand."""

    def __init__(self) -> None:
        self.held = self.free = self.given_back = 0
        self._seconds = 0.0

    def heap(self, between: int = 0) -> Heap:
        return Heap(
            PLAN, between=between, give_back=self._give_back,
            look=lambda: self.held, free=lambda: self.free, clock=self._clock,
        )  # fmt: skip

    def _give_back(self) -> None:
        self.given_back += 1

    def _clock(self) -> float:
        self._seconds += 1.0
        return self._seconds


def looked(process: Process, heap: Heap, held: int, free: int) -> int:
    """Return how often holes were given back after another look."""
    process.held, process.free = held, free
    heap.check()
    return process.given_back


def test_holes_stay_while_the_process_is_far_from_its_plan() -> None:
    process = Process()
    heap = process.heap()
    assert looked(process, heap, 100 * MB, 90 * MB) == 0
    assert looked(process, heap, NEAR, 300 * MB) == 0


def test_near_the_plan_holes_go_whenever_there_are_some() -> None:
    process = Process()
    heap = process.heap()
    assert looked(process, heap, NEAR + 1, HOLES + 1) == 1
    assert looked(process, heap, PLAN, HOLES + 1) == 1, "nothing lay on them since"
    assert looked(process, heap, PLAN, 0) == 1, "all of them are in use"
    assert looked(process, heap, PLAN, HOLES + 1) == 2, "after the first peak as before it"


def test_what_lives_is_no_hole_even_above_the_plan() -> None:
    process = Process()
    heap = process.heap()
    assert [looked(process, heap, 3 * PLAN, HOLES) for _ in range(100)][-1] == 0


def test_nothing_is_known_of_holes_that_came_far_from_the_plan() -> None:
    process = Process()
    heap = process.heap()
    assert looked(process, heap, PLAN, 2 * HOLES) == 1
    assert looked(process, heap, NEAR, HOLES) == 1
    assert looked(process, heap, PLAN, 2 * HOLES) == 2


def test_more_is_kept_free_where_more_is_allocated_between_two_looks() -> None:
    process = Process()
    assert looked(process, process.heap(3 * RESERVE), PLAN - 3 * RESERVE + 1, HOLES + 1) == 1


def test_a_look_follows_another_only_after_a_while() -> None:
    looks: list[int] = []

    def look() -> int:
        looks.append(MB)
        return MB

    clock = iter((0.0, 0.0, 0.0005, 0.0015)).__next__
    heap = Heap(0, give_back=lambda: None, look=look, free=lambda: 0, clock=clock)
    for _ in range(3):
        heap.check()
    assert len(looks) == 2


NEAR_IT = """
from edgetune.before_torch import set_environment
set_environment()
import torch
from edgetune.device.footprint import anonymous_bytes
from edgetune_torch.malloc import Heap, free_bytes, limit_heap, trim
limit_heap()
trim()
before = anonymous_bytes()
between, fixed = [], []
for _ in range(256):
    between.append(torch.ones(2**18))
    fixed.append(torch.ones(2**10))
del between
print(free_bytes() >= 2**27, anonymous_bytes() - before >= 2**27)
Heap(anonymous_bytes(), clock=iter((0.0, 1.0)).__next__).check()
print(anonymous_bytes() - before < 2**24)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_holes_are_found_and_given_back_near_the_plan() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEAR_IT], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "True"]


PAGES = """
import resource
from edgetune.before_torch import set_environment
set_environment()
import torch
from edgetune_torch.malloc import limit_heap
limit_heap()
a = torch.ones({numbers}); b = torch.ones({numbers}); c = a + b
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    c = a + b
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
@pytest.mark.parametrize("numbers", [2**18, 3 * 2**20], ids=["1 MB", "12 MB"])
def test_tensors_of_a_session_lie_on_pages_that_are_there(numbers: int) -> None:
    script = PAGES.format(numbers=numbers)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50 * 4 * numbers / 4096 / 4
