"""`visionloop up | down | status | logs | doctor`: the embedded servers."""

import collections
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from visionloop import stack
from visionloop.cli.loops import check_loops
from visionloop.errors import StackError
from visionloop.settings import load_settings

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Names = Annotated[list[str] | None, typer.Option(help="services, repeatable")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(epilog="Example: visionloop up")(up)
    app.command(epilog="Example: visionloop down")(down)
    app.command(epilog="Example: visionloop status --json")(status)
    app.command(epilog="Example: visionloop logs ray --lines 50 --follow")(logs)
    app.command(epilog="Example: visionloop doctor")(doctor)


def up(only: Names = None, without: Names = None, as_json: AsJson = False) -> None:
    """Start the embedded servers and wait until each is healthy; harmless when they run."""
    _show(stack.up(load_settings(), only=only, without=tuple(without or ()), on_event=said), as_json)


def down() -> None:
    """Stop the embedded servers; data stay."""
    stack.down(load_settings(), on_event=_said_at_the_end)
    typer.echo("stopped; the data stay, `visionloop up` goes on with them")


def status(as_json: AsJson = False) -> None:
    """What runs, where, in which version, with how much memory; exit code 1 when something that should run doesn't."""
    found = stack.status(load_settings())
    _show(found, as_json)
    if found.services and not found.is_up:
        raise typer.Exit(1)


def logs(
    service: str,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0)] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
) -> None:
    """The end of a service's log."""
    path = stack.log_path(load_settings(), service)
    if not path.is_file():
        raise StackError(f"{service} has not logged yet: {path} does not exist")
    with path.open(errors="replace") as stream:
        typer.echo("".join(collections.deque(stream, maxlen=lines)), nl=False)
        while follow:
            typer.echo(stream.readline(), nl=False) if _grew(stream.tell(), path) else time.sleep(0.2)


def doctor(
    repair: Annotated[bool, typer.Option(help="put right what is safe to")] = False, as_json: AsJson = False
) -> None:
    """Can this machine run the servers, and do the running ones agree about what is released? Exit code 1 when not."""
    settings = load_settings()
    checks = [*stack.doctor(settings), *check_loops(settings, mend=repair)]
    if as_json:
        typer.echo("[" + ",".join(check.model_dump_json() for check in checks) + "]")
    else:
        for check in checks:
            mark = "ok  " if check.ok else "FAIL"
            typer.echo(f"{mark} {check.name}: {check.found}" + (f" -> {check.advice}" if check.advice else ""))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def said(event: stack.Event) -> None:
    """One line on stderr for what changes while servers start."""
    _say(event, {"running", "unhealthy", "failed", "restarting"})


def _said_at_the_end(event: stack.Event) -> None:
    _say(event, {"stopped", "failed"})


def _say(event: stack.Event, states: set[str]) -> None:
    if event.state in states:
        typer.echo(f"{event.seconds:6.1f} s  {event.service} {event.state} {event.reason}".rstrip(), err=True)


def _grew(position: int, path: Path) -> bool:
    return path.stat().st_size > position


def _show(found: stack.StackStatus, as_json: bool) -> None:
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    table = Table("service", "state", "address", "version", "MiB", "restarts", "reason", box=None)
    for column in table.columns[:5]:
        column.no_wrap = True
    for service in found.services:
        color = {"running": "green", "stopped": "dim"}.get(service.state, "red")
        table.add_row(
            service.name,
            f"[{color}]{service.state}[/]",
            service.address or "",
            service.version or "",
            f"{service.rss_mb:.0f}" if service.rss_mb else "",
            str(service.restarts or ""),
            Text(service.reason or ""),
        )
    console = Console()
    console.print(table)
    if scraped := [service.metrics for service in found.services if service.metrics]:
        console.print(f"for Prometheus: {' '.join(scraped)}", soft_wrap=True)
    last = f"{found.phase}, {found.rss_mb:.0f} MiB; logs: `visionloop logs SERVICE`. {found.reason}".rstrip()
    console.print(last, markup=False)
