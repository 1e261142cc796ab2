"""Windows: oldest first, one version, nothing twice, and nothing before there is enough."""

from collections.abc import Collection
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.errors import DataError
from visionloop.monitoring.windows import Capture, common_version, next_window, parse_capture, waiting


def key(at_ms: int, rows: int, *, version: int = 1, lane: str = "stable", unique: str = "0a-1b") -> str:
    return f"p/captures/version={version}/lane={lane}/hour=2026010100/{at_ms}-{unique}-n{rows}.parquet"


def ask(keys: list[str], *, consumed: Collection[str] = (), samples: int = 100, share: float = 1.0) -> list[str]:
    found = waiting(keys, consumed=consumed, version=1)
    return next_window(found, window_samples=samples, image_share=share)


def rows_left(keys: list[str], consumed: Collection[str]) -> int:
    return sum(capture.rows for capture in waiting(keys, consumed=consumed, version=1))


def test_a_key_tells_version_lane_time_and_rows() -> None:
    unique = "123e4567-e89b-12d3-a456-426614174000"
    text = key(1767225600123, 64, version=12, lane="canary", unique=unique)
    assert parse_capture(text) == Capture(text, 12, "canary", 1767225600123, 64)


@pytest.mark.parametrize(
    "text",
    [
        "p/captures/version=1/lane=stable/hour=2026010100/.part-1-a-n5.parquet",
        "p/captures/version=1/lane=stable/hour=2026010100/1-a-n5.parquet.tmp",
        "p/captures/version=x/lane=stable/hour=2026010100/1-a-n5.parquet",
        "p/captures/readme.txt",
    ],
)
def test_foreign_objects_are_no_captures(text: str) -> None:
    assert parse_capture(text) is None
    assert ask([text], samples=1) == []


def test_the_oldest_captures_of_any_lane_come_first() -> None:
    keys = [key(3, 60), key(1, 60, lane="canary"), key(2, 60)]
    assert ask(keys) == [keys[1], keys[2]]


@pytest.mark.parametrize(("rows", "closes"), [(99, False), (100, True)])
def test_a_window_closes_with_exactly_enough_rows(rows: int, closes: bool) -> None:
    assert ask([key(1, rows)]) == ([key(1, rows)] if closes else [])


@pytest.mark.parametrize(("rows", "closes"), [(399, False), (400, True)])
def test_with_a_quarter_of_the_images_a_window_needs_four_times_the_rows(rows: int, closes: bool) -> None:
    assert bool(ask([key(1, rows)], share=0.25)) is closes


def test_without_images_there_is_no_window() -> None:
    assert ask([key(1, 10_000)], share=0.0) == []


def test_other_versions_and_consumed_captures_are_left_out() -> None:
    keys = [key(1, 100, version=2), key(2, 100), key(3, 100)]
    assert ask(keys, consumed={keys[1]}) == [keys[2]]
    assert ask(keys, consumed={keys[1], keys[2]}) == []
    assert rows_left(keys, {keys[1]}) == 100


def test_after_a_rollback_only_what_came_since_counts() -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    at_ms = int(since.timestamp() * 1000)
    keys = [key(at_ms - 1, 500), key(at_ms, 5)]
    assert [capture.rows for capture in waiting(keys, consumed=(), version=1, since=since)] == [5]


def test_one_version_only() -> None:
    assert common_version([key(1, 5), key(2, 5)]) == 1
    with pytest.raises(DataError, match=r"exactly one model version, found \[1, 2\]"):
        common_version([key(1, 5), key(1, 5, version=2)])
    with pytest.raises(DataError, match="no capture"):
        common_version([])
    with pytest.raises(DataError, match="is no capture: expected"):
        common_version(["p/x"])


captures = st.lists(
    st.tuples(st.integers(0, 10**12), st.integers(0, 200), st.integers(1, 3), st.sampled_from(["stable", "canary"])),
    max_size=30,
    unique_by=lambda item: item[0],
).map(lambda items: [key(at, rows, version=version, lane=lane) for at, rows, version, lane in items])


@given(captures, st.integers(1, 500))
def test_windows_use_every_capture_once_in_order(keys: list[str], samples: int) -> None:
    consumed: set[str] = set()
    times: list[int] = []
    while taken := ask(keys, consumed=consumed, samples=samples):
        found = [parse_capture(text) for text in taken]
        assert all(capture and capture.version == 1 for capture in found)
        rows = [capture.rows for capture in found if capture]
        assert sum(rows) >= samples > sum(rows[:-1])
        assert not consumed & set(taken)
        consumed |= set(taken)
        times += [capture.at_ms for capture in found if capture]
    assert times == sorted(times)
    assert rows_left(keys, consumed) < samples


def test_mirrored_requests_are_no_traffic_of_the_version_that_answered_them() -> None:
    assert ask([key(1, 60), key(2, 60, lane="shadow"), key(3, 60, lane="canary")]) == [
        key(1, 60),
        key(3, 60, lane="canary"),
    ]
