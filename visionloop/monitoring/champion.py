"""Which release serves, read from the release records alone (light: no registry client)."""

from collections.abc import Iterable

from visionloop.records import Release


def serving_release(releases: Iterable[Release]) -> Release | None:
    """The newest promoted release: what the stable lane serves; None before the first release."""
    promoted = [release for release in releases if release.outcome == "promoted"]
    return max(promoted, key=lambda release: release.created_at, default=None)


def id_of(reference: str) -> str:
    """The id in a reference to a record, be it the id itself or the record's URI."""
    return reference.rsplit("/", 1)[-1].removesuffix(".json")
