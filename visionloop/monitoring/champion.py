"""Which release serves, read from the release records alone (light: no registry client)."""

from collections.abc import Iterable
from datetime import datetime

from visionloop.records import Release


def serving_release(releases: Iterable[Release]) -> Release | None:
    """The newest promoted release: what the stable lane serves; None before the first release."""
    promoted = [release for release in releases if release.outcome == "promoted"]
    return max(promoted, key=lambda release: release.created_at, default=None)


def serving_since(releases: Iterable[Release]) -> datetime | None:
    """From when on traffic of the serving version counts; None: all of it, that of its own canary too.

    After a rollback the old version has captures from before it was replaced: they say nothing about now.
    """
    promoted = [release for release in releases if release.outcome == "promoted"]
    now = serving_release(promoted)
    before = [release for release in promoted if now and release.version == now.version and release.id != now.id]
    return now.created_at if now and before else None
