"""The set of row counts: few, close together, and every number of rows has one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgetune.buckets import STEPS, bucket, buckets, chunked

ROWS = st.integers(0, 1 << 20)


@given(ROWS)
def test_a_bucket_holds_its_rows_and_wastes_little(rows: int) -> None:
    found = bucket(rows)
    assert rows <= found
    assert bucket(found) == found
    assert found - rows < max(STEPS, found / STEPS)


@given(ROWS, ROWS)
def test_more_rows_never_get_a_smaller_bucket(one: int, other: int) -> None:
    assert bucket(min(one, other)) <= bucket(max(one, other))


@given(st.integers(1, 10_000))
def test_the_members_are_all_buckets_there_are(most: int) -> None:
    members = buckets(most)
    assert members == tuple(
        sorted(
            {bucket(rows) for rows in range(1, most + 1)} - {bucket(most)}
            | ({most} if bucket(most) == most else set())
        )
    )
    assert len(members) <= STEPS * (2 + most.bit_length())


@given(ROWS, st.integers(1, 5_000))
def test_only_the_last_chunk_is_filled_up(rows: int, chunk: int) -> None:
    found = chunked(rows, chunk)
    assert rows <= found < rows + chunk
    assert found // chunk * chunk == found or found % chunk == bucket(rows % chunk)
