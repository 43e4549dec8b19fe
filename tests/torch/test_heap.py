"""Freed memory serves the next tensors, and goes back when the process is near its plan."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from edgetune_torch.malloc import GROWTH, RESERVE, Heap

MB = 2**20


class Process:
    """A process whose memory is set by hand."""

    def __init__(self, *held: int) -> None:
        self.held = iter(held)
        self.given_back = 0

    def give_back(self) -> None:
        self.given_back += 1


def heap_of(process: Process, expected: int) -> Heap:
    def seconds() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += 1.0

    clock = seconds()
    return Heap(
        expected,
        give_back=process.give_back,
        look=lambda: next(process.held),
        clock=lambda: next(clock),
    )


def test_holes_stay_while_the_process_is_far_from_its_plan() -> None:
    process = Process(100 * MB, 300 * MB, 500 * MB - RESERVE)
    heap = heap_of(process, 500 * MB)
    for _ in range(3):
        heap.check()
    assert process.given_back == 0


def test_holes_go_near_the_plan_and_again_only_after_some_growth() -> None:
    near = 500 * MB - RESERVE
    after = near + 8 * MB
    process = Process(near + 1, after, after + GROWTH, after + GROWTH + 1, near - 1, near)
    heap = heap_of(process, 500 * MB)
    heap.check()
    assert process.given_back == 1
    heap.check()
    assert process.given_back == 1, "what lives is no hole"
    heap.check()
    assert process.given_back == 2


def test_more_is_kept_free_where_more_is_allocated_between_two_looks() -> None:
    process = Process(500 * MB - 3 * RESERVE + 1, 300 * MB)
    Heap(
        500 * MB, between=3 * RESERVE, give_back=process.give_back,
        look=lambda: next(process.held), clock=iter((0.0, 1.0)).__next__,
    ).check()  # fmt: skip
    assert process.given_back == 1


def test_holes_never_grow_beyond_the_plan() -> None:
    near_it = 500 * MB - GROWTH // 2
    process = Process(near_it, near_it, 500 * MB + 1, near_it)
    heap = heap_of(process, 500 * MB)
    heap.check()
    heap.check()
    assert process.given_back == 2


def test_a_look_follows_another_only_after_a_while() -> None:
    process = Process()  # a look would find nothing
    Heap(0, give_back=process.give_back, look=lambda: next(process.held), clock=lambda: 1.0)
    heap = Heap(0, give_back=process.give_back, look=lambda: MB, clock=lambda: 1.0)
    heap.check()
    heap.check()
    assert process.given_back == 1


PAGES = """
import resource
from edgetune.before_torch import set_environment
set_environment()
import torch
from edgetune_torch.malloc import limit_heap, reuse_freed
limit_heap()
reuse_freed()
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
