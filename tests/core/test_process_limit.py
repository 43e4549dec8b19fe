"""The limit on a process's memory, over a process that is made of numbers, and over this one."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.backend import DeviceOutOfMemoryError
from edgetune.device.footprint import anonymous_bytes, exact_anonymous_bytes
from edgetune.process_limit import LEAST_TOLERANCE, LOOK_SECONDS, PAUSE_SECONDS, ProcessLimit

GB = 10**9


class Process:
    """A process whose memory is set, some of which can be given back."""

    def __init__(self, nbytes: int, kept: int = 0) -> None:
        self.nbytes = nbytes
        self.kept = kept
        self.counted_too_much = 0
        self.looks = 0
        self.given_back = 0
        self.now = 0.0

    def give_back(self) -> None:
        self.nbytes -= self.kept
        self.kept = 0
        self.given_back += 1

    def look(self) -> int:
        self.looks += 1
        return self.nbytes + self.counted_too_much

    def limit(self, nbytes: int | None) -> ProcessLimit:
        return ProcessLimit(
            nbytes,
            self.give_back,
            look=self.look,
            look_exactly=lambda: self.nbytes,
            clock=lambda: self.now,
        )


def test_within_the_limit_nothing_is_given_back() -> None:
    process = Process(GB)
    process.limit(GB).check(divisible=True)
    process.limit(None).check(divisible=True)
    assert (process.looks, process.given_back) == (1, 0)


def test_a_little_more_than_the_limit_is_no_reason_to_fail() -> None:
    Process(GB + GB // 50).limit(GB).check(divisible=True)
    Process(100_000 + LEAST_TOLERANCE).limit(100_000).check(divisible=True)
    for limit in (GB, 100_000):
        with pytest.raises(DeviceOutOfMemoryError):
            Process(limit + limit // 50 + LEAST_TOLERANCE + 1).limit(limit).check(divisible=True)


def test_more_is_let_pass_where_nothing_smaller_is_left() -> None:
    process = Process(GB + GB // 10)
    process.limit(GB).check(divisible=False)
    process.nbytes += 1
    with pytest.raises(DeviceOutOfMemoryError):
        process.limit(GB).check(divisible=False)


def test_what_can_be_given_back_is_not_held_against_a_step() -> None:
    process = Process(2 * GB, kept=GB)
    process.limit(GB).check(divisible=True)
    assert process.given_back == 1
    process.kept = 0
    process.nbytes = 2 * GB
    with pytest.raises(DeviceOutOfMemoryError, match=r"2\.0 GB are in use, the limit is 1\.0 GB"):
        process.limit(GB).check(divisible=True)


def test_counters_that_run_ahead_are_checked() -> None:
    process = Process(GB)
    process.counted_too_much = GB
    process.limit(GB).check(divisible=True)
    assert process.given_back == 1


def test_it_looks_from_time_to_time() -> None:
    process = Process(GB)
    limit = process.limit(GB)
    for _ in range(10):
        limit.check(divisible=True)
    assert process.looks == 1
    process.now += LOOK_SECONDS
    process.counted_too_much = GB
    limit.check(divisible=True)
    process.now += LOOK_SECONDS
    limit.check(divisible=True)
    assert process.looks == 2
    process.now += PAUSE_SECONDS
    limit.check(divisible=True)
    assert process.looks == 3


@pytest.mark.parametrize("look", [anonymous_bytes, exact_anonymous_bytes])
def test_what_is_written_is_counted(look: object) -> None:
    assert callable(look)
    before = look()
    written = np.ones(100_000_000, np.uint8)
    assert 90_000_000 < look() - before < 130_000_000
    del written
    assert look() - before < 20_000_000
