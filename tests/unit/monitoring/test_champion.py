"""Who serves, by the release records: newest promoted, and since when its traffic counts."""

from datetime import UTC, datetime, timedelta
from typing import Any

from visionloop.monitoring.champion import serving_release, serving_since
from visionloop.records import Release

AT = datetime(2026, 1, 1, tzinfo=UTC)


def release(version: int, hours: int, outcome: Any = "promoted") -> Release:
    return Release(
        id=f"r{hours}",
        project="p",
        created_at=AT + timedelta(hours=hours),
        candidate=f"c{version}",
        approval="a",
        version=version,
        model_sha256="0",
        previous_version=None,
        steps=[],
        outcome=outcome,
        reason="",
    )


def test_nothing_serves_before_the_first_promotion() -> None:
    assert serving_release([]) is None
    assert serving_release([release(1, 0, "rejected")]) is None
    assert serving_since([]) is None


def test_the_newest_promoted_release_serves_in_whatever_order_they_come() -> None:
    releases = [release(2, 5), release(1, 1), release(3, 9, "rolled_back")]
    found = serving_release(releases)
    assert found
    assert found.version == 2
    assert serving_since(releases) is None, "the traffic of its own canary counts too"


def test_after_a_rollback_the_old_versions_old_traffic_does_not_count() -> None:
    assert serving_since([release(1, 1), release(2, 5), release(1, 7)]) == AT + timedelta(hours=7)
