"""`visionloop metrics`: what each lane did with a model's requests, as a table for people."""

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from visionloop.project import load_project, project_file
from visionloop.serving.traffic import LaneTraffic, Traffic, traffic
from visionloop.settings import load_settings

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Over = Annotated[float, typer.Option(min=0.0, help="seconds to watch; 0: all since the servers started")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(epilog="Example: visionloop metrics fashion --over 10")(metrics)


def metrics(project: str, over: Over = 0.0, as_json: AsJson = False) -> None:
    """Requests, share, errors, latency, queue, batches and captures of each lane, as Prometheus reads them."""
    from visionloop.stores.scrapes import scrape

    settings = load_settings()
    name = load_project(project_file(settings.projects, project)).name
    before = scrape(settings) if over else None
    time.sleep(over)
    found = traffic(name, scrape(settings), before)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        _show(found, over)


def _show(found: Traffic, over: float) -> None:
    table = Table("", *(f"{one.lane} {_versions(one)}".strip() for one in found.lanes))
    rows = {
        "requests": [f"{one.requests} ({one.share:.1%})" for one in found.lanes],
        "errors": [_counted(one.errors) for one in found.lanes],
        "on the way": [_counted(one.causes) for one in found.lanes],
        "saved by the other lane": [str(one.saved) for one in found.lanes],
        "answered when back": [str(one.waited) for one in found.lanes],
        "p50 / p90 / p99": [" / ".join(map(_ms, (one.p50_ms, one.p90_ms, one.p99_ms))) for one in found.lanes],
        "mean queue": [_ms(one.queue_ms) for one in found.lanes],
        "mean batch": ["-" if one.batch_images is None else f"{one.batch_images:.1f} images" for one in found.lanes],
        "captured": [str(one.captured) for one in found.lanes],
        "not captured": [_counted(one.dropped) for one in found.lanes],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console().print(table)
    since = f"in {over:g} s" if over else "since the servers started"
    typer.echo(f"{found.model}: {sum(one.requests for one in found.lanes)} requests {since}")
    typer.echo(f"all models: refused before any lane: {_counted(found.refused)}; sampled for capture: {found.sampled}")
    if found.laneless:
        typer.echo(f"all models: sampled, but answered by no lane: {_counted(found.laneless)}")
    if found.uncaptured:
        typer.echo(f"{found.uncaptured} sampled requests have not reached the capture service")
    if found.silent:
        typer.echo(f"no answer from: {', '.join(found.silent)}")


def _versions(lane: LaneTraffic) -> str:
    return ", ".join(f"version {version}" for version in lane.versions)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"
