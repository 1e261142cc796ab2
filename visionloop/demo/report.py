"""What a demo showed: `report.json`, and the table at its end."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from visionloop.atomic import write_whole
from visionloop.records import CanaryStep


class Part(BaseModel):
    """A part of the report: strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Timed(Part):
    """One stage of the demo."""

    name: str
    seconds: float


class Accuracy(Part):
    """Share of served images answered right, each through the endpoint."""

    clean_v1: float
    changed_before: float
    changed_after: float
    clean_after: float


class ApprovalFacts(Part):
    """Who let a release go."""

    by: str
    mode: str
    decision: str
    reason: str


class ReleaseFacts(Part):
    """One release that the demo saw."""

    version: int
    model_sha256: str
    approval: ApprovalFacts
    canary: list[CanaryStep]


class WindowFacts(Part):
    """What the monitor said of a window."""

    drifted: bool
    windows: int
    views: dict[str, float]
    """View -> share of drifted columns, of the last of these windows."""


class DriftFacts(Part):
    """The monitor on clean and on changed traffic."""

    clean_window: WindowFacts
    changed_window: WindowFacts
    windows_to_decision: int
    """Windows with changed traffic that it took until the retrain request."""


class Report(Part):
    """Everything that a demo showed."""

    schema_version: int = 1
    seconds: float
    stages: list[Timed]
    services: dict[str, str]
    served_images: int
    served: dict[str, int]
    """Figure -> number of images behind it."""
    failed_requests: int
    accuracy: Accuracy
    drift: DriftFacts
    releases: list[ReleaseFacts]
    links: dict[str, str]


def write(report: Report, path: Path) -> None:
    """Write `report.json` whole or not at all."""
    write_whole(path, report.model_dump_json(indent=1) + "\n", mode=0o644)


def show(report: Report, console: Console) -> None:
    """The table that a person reads."""
    table = Table(title="What the endpoint answered", title_justify="left")
    table.add_column("camera")
    table.add_column("model")
    table.add_column("accuracy", justify="right")
    table.add_column("images", justify="right")
    old, new = (release.version for release in report.releases)
    rows = [
        ("as it was", old, "clean_v1"),
        ("out of focus, too dark", old, "changed_before"),
        ("out of focus, too dark", new, "changed_after"),
        ("as it was", new, "clean_after"),
    ]
    for camera, version, figure in rows:
        value = getattr(report.accuracy, figure)
        table.add_row(camera, f"version {version}", f"{value:.3f}", f"{report.served[figure]:,}")
    console.print(table)
    console.print(
        f"Drift: clean traffic {_verdict(report.drift.clean_window)}, changed traffic "
        f"{_verdict(report.drift.changed_window)}; asked for retraining after "
        f"{report.drift.windows_to_decision} window(s) with changed traffic."
    )
    console.print(
        f"{report.served_images:,} images served, {report.failed_requests} requests failed; {report.seconds:.0f} s."
    )
    for name, link in report.links.items():
        console.print(f"  {name}: {link}", soft_wrap=True)


def _verdict(window: WindowFacts) -> str:
    return "flagged" if window.drifted else "not flagged"
